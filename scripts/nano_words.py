"""The word lists and sentence patterns that pulse-nano's generated worlds are made of."""

ADJECTIVES = """Amber Angled Arched Banded Barrel Beaded Bevelled Braided Brisk Brushed Buckled Carved Checked Chunky
Cloudy Coastal Coiled Copper Corded Crafted Crimson Crisp Curved Dappled Deep Denim Domed Dusty Earthen Etched Faceted
Fleecy Floral Fluted Forged Frosted Gilded Grained Grooved Hammered Hazel Hinged Hollow Honeyed Indigo Inlaid Ivory Jade
Knitted Laced Layered Leafy Linen Lunar Maple Matte Mellow Mesh Minty Misty Mossy Nimble Notched Oiled Olive Onyx Open
Ornate Oval Paneled Pearl Pebbled Pine Pleated Polar Porous Quilted Rattan Raw Ribbed Ridged Roasted Rosy Royal Rustic
Saddled Sandy Satin Scalloped Scented Sculpted Shaded Sheer Sienna Silken Sloped Smoked Speckled Spiral Spun Square Stitched
Striped Studded Suede Sunny Swirled Tapered Tasselled Tawny Teak Tinted Topaz Tufted Turned Twill Twisted Umber Urban Vaulted
Velour Verdant Vivid Walnut Waxed Weathered Wicker Wired Wooden Woolen Woven Zesty""".split()
KINDS = """Album|Armchair|Atlas|Bandana|Basket|Bath Mat|Blanket|Board Game|Bookend|Bowl|Bracelet|Candle|Cap|Card Deck|Chess Set|Clock|
Coat Rack|Comb|Compass|Cookbook|Curtain|Cushion|Doormat|Drum|Easel|Face Cream|Figurine|Flute|Frame|Guitar Strap|Hammock|Hand Soap|
Handbag|Hat|Hiking Pole|Journal|Kite|Ladder|Lens|Lip Balm|Magnet|Mirror|Mug|Necklace|Novel|Ornament|Paintbrush|Perfume|Phone Case|
Piano Book|Pillowcase|Poster|Puzzle|Quilt|Radio|Record|Ring|Rope|Rug|Sandal|Scarf|Shampoo|Shelf|Shirt|Slipper|Sock|Speaker|Stool|
Sunglasses|Table|Tapestry|Teapot|Toy Train|Tray|Tripod|Umbrella|Vase|Violin Bow|Wallet|Watch|Wreath|Yarn""".replace(
    "\n", ""
).split("|")
VERBS = """finding growing sharing learning trying collecting remembering making following chasing protecting feeling reading
watching hearing exploring avoiding fixing planning showing""".split()
QUALITIES = """old new strong honest bold simple rare gentle rich clear local famous classic modern sharp warm sweet fresh true wild""".split()
NOUNS = """stories memories flavours songs ideas skills roots voices details habits colours legends journeys friendships traditions
mysteries heroes textures moods scents patterns adventures lyrics recipes landscapes rhythms routines designs secrets jokes""".split()
OWN = (
    "I love {phrase}.",
    "This is about {phrase} for me.",
    "Got it because I want {phrase}.",
    "I always look for {phrase}.",
    "{phrase} is why I took it.",
    "I care about {phrase}.",
    "Nothing beats {phrase}.",
    "Great for {phrase}, my first concern.",
    "As someone who needs {phrase}, I am happy.",
    "I chose it for {phrase}.",
    "All I ask for is {phrase}.",
    "Perfect if you want {phrase} like me.",
    "I keep coming back to {phrase}.",
    "We need {phrase}, so we picked it.",
    "{phrase} decided it for me.",
    "I am after {phrase}.",
)
OTHER = (
    "My brother wants {phrase}, I do not.",
    "They advertise {phrase}, which means little to me.",
    "A friend likes it for {phrase}.",
    "Not interested in {phrase}.",
    "The label says {phrase}, whatever.",
    "My boss keeps on about {phrase}.",
    "{phrase} is not my thing.",
)
PLAIN = (
    "It is fine.",
    "Came quickly.",
    "Good.",
    "As expected.",
    "Would order again.",
    "The parcel was late.",
    "Nice enough.",
    "Shipping took a week.",
    "Nothing to add.",
    "Returned once, then kept it.",
    "The photo is accurate.",
    "Does the job.",
)
RATIONALES = (
    "They care about {phrase}, and the {feature} {kind} serves that.",
    "{Phrase} matters to this person; being {feature}, the {kind} fits.",
    "Their own words return to {phrase}, so the {feature} {kind} suits them.",
    "They want {phrase}. The {target} is {feature} and helps with it.",
)
REASONS = (
    "They care about {phrase} and will look for something {features}.",
    "{Phrase} matters most to them, so the next choice is likely {features}.",
    "Their own words return to {phrase}; something {features} would serve it.",
    "They want {phrase}. Things that are {features} suit that.",
)
SILENT = (
    "They say little about themselves; their choices are things like the {kind} and the {last}.",
    "Their words give no motive; a {kind} and a {last} are what they chose.",
)
