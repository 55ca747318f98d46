# ruff: noqa: T201
"""Ask a running Space: ``python spaces_app/examples/ask.py [URL or owner/space]``."""

import sys

from gradio_client import Client

space = Client(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860", verbose=False)
history = ["Bamboo Kettle", "a cork tray that is not in the catalogue"]
words = ["I always look for making less waste.", "Giving up plastic matters most to me."]

ranked = space.predict(history=history, words=words, k=3, api_name="/recommend")
print(f"because: {ranked['reason']} (agrees {ranked['agreement']:.2f})")
for item in ranked["items"]:
    print(f"{item['rank']:3} {item['score']:6.2f}  {item['title']}")

steered = space.predict(history=history, words=words, reason="They care about rain and wind.", k=3, api_name="/steer")
print(f"\nbecause: {steered['reason']}")
for item in steered["items"]:
    print(f"{item['rank']:3} {item['score']:6.2f}  {item['title']}  ({item['rose']:+} places)")
