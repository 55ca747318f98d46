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
# Sentences are put together from parts, so that which phrase is whose must be read, not remembered.
# None of the sentences held out from pulse-nano can come about (a test looks).
BEFORE = ("", "", "", "Honestly, ", "As ever, ", "These days ", "At our place ", "Frankly, ", "Once more ", "For years now ",
    "To be clear, ", "With my habits ", "Since last year ", "All in all ")  # fmt: skip
OWN_MIDDLE = ("I love {phrase}", "I want {phrase}", "I need {phrase}", "I value {phrase}", "I care about {phrase}",
    "I am after {phrase}", "I asked for {phrase}", "I think of {phrase}", "I go for {phrase}", "I live for {phrase}",
    "I insist on {phrase}", "I hope for {phrase}", "I took it for {phrase}", "I got it with {phrase} as the aim",
    "I picked it because of {phrase}", "I paid for {phrase}", "I count on {phrase}", "I keep coming back to {phrase}",
    "we need {phrase}", "we picked it for {phrase}", "we are all for {phrase}", "it is {phrase} I am here for",
    "this is about {phrase} for me", "this one is for {phrase}", "nothing beats {phrase} in my eyes",
    "my first concern is {phrase}", "my whole point is {phrase}", "my heart is set on {phrase}",
    "my wish was {phrase}", "what counts is {phrase}", "what I want is {phrase}", "what sold me was {phrase}",
    "give me {phrase}", "{phrase} comes first for me", "{phrase} is why I took it", "{phrase} decided it for me",
    "{phrase} is what I care for", "{phrase} is all I ask", "{phrase} won me over", "{phrase} makes my day",
    "{phrase} was on my mind", "{phrase} is my priority", "{phrase} means a lot to me", "it helps me with {phrase}",
    "I trust it for {phrase}", "because {phrase} matters to me I chose this", "as a person of {phrase} I am glad")  # fmt: skip
AFTER = ("", "", "", "", " above all", " more than anything", " and this has it", " every time", ", so it stays",
    ", that is how I am", " and nothing else", ", so I am happy", " as you can tell", ", believe me")  # fmt: skip
OTHER_WHO = ("My brother", "My aunt", "A neighbour", "My boss", "A cousin", "My flatmate", "A colleague", "My father",
    "The label", "The advert", "The shop", "The website", "The leaflet", "Another buyer", "The salesman")  # fmt: skip
OTHER_MIDDLE = ("keeps talking about {phrase}", "is all about {phrase}", "swears by it for {phrase}", "wants {phrase}",
    "raves about {phrase}", "dreams of {phrase}", "mentions {phrase}", "sells it for {phrase}", "promises {phrase}",
    "would take it for {phrase}", "goes on about {phrase}", "thinks of {phrase}", "recommends it for {phrase}")  # fmt: skip
OTHER_AFTER = (
    "",
    "",
    "",
    ", not me",
    ", which means little to me",
    ", whatever that is",
    ", I do not",
    ", fine",
    " all day",
)
NOT_MINE = ("Not interested in {phrase}", "{phrase} is not my thing", "{phrase} leaves me cold", "I can do without {phrase}",
    "{phrase} is wasted on me", "I never think of {phrase}", "I do not need {phrase}", "No idea what {phrase} is good for",
    "People speak of {phrase}, I shrug", "Some look for {phrase}, not I", "I have no use for {phrase}",
    "{phrase} is somebody else's worry")  # fmt: skip
PLAIN_WHO = (
    "It",
    "The parcel",
    "Delivery",
    "The order",
    "The packaging",
    "The shop",
    "Everything",
    "The thing",
    "This one",
)
PLAIN_MIDDLE = ("came quickly", "was fine", "took a week", "is as expected", "was a day late", "looks right", "went well",
    "does the job", "is okay so far", "was simple to order", "met the description", "is what I ordered", "had a scratch",
    "smelled of glue", "was well wrapped", "came with a note", "needed a second try", "is good")  # fmt: skip
PLAIN = ("Good.", "Nice enough.", "Nothing to add.", "Would order again.", "Returned once, then kept it.", "Five days to get here.",
    "The photo is accurate.", "No trouble at all.", "Fair price.", "Thanks.")  # fmt: skip
PHRASES = ("{a} {n}", "{n} and {m}", "{v} the {n}", "a very {a} {n}", "never {v} {n}", "{n} that {w} for {m}", "not {v} the {n}",
    "no {a} {n} near {m}", "{v} as {a} as possible", "every {n} counts", "a {n} and {a} {m}", "the {a} {n}", "{v} it in {n}",
    "having {n} over", "{a} {n} and {m}", "long {a} {n}", "{v} {n} everywhere", "hating to {w}", "{v} without {n}",
    "{n} on the {m}", "something {a} {v}", "{n} for {a} {m}", "big {n} {m}", "a {n} of {m}", "{v} little {n}")  # fmt: skip
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
PLAIN_RATIONALES = (
    "They care about {phrase}, and the {target} serves that.",
    "{Phrase} matters to this person; the {target} fits.",
    "Their own words return to {phrase}, so the {target} suits them.",
    "They want {phrase}. The {target} helps with it.",
)
