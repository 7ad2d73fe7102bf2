"""The `openai` client with `spectrum serve`: two images at two qualities, and the steps of a third as they are done.

Start the server first: `spectrum serve`. The client comes with `pip install openai`.
"""

import base64
import os
from pathlib import Path

import openai

OUT = Path("out/openai_client")
URL = os.environ.get("SPECTRUM_URL", "http://127.0.0.1:8000/v1")


def main() -> dict[str, int]:
    """Save the images under ``out/openai_client``; return the evaluated steps of each."""
    client = openai.OpenAI(base_url=URL, api_key=os.environ.get("SPECTRUM_API_KEY", "unused"))
    OUT.mkdir(parents=True, exist_ok=True)
    evaluated = {}

    for quality in ("high", "low"):
        answer = client.images.generate(prompt="red apple", quality=quality, extra_body={"seed": 1})
        (image,) = answer.data
        (OUT / f"{quality}.png").write_bytes(base64.b64decode(image.b64_json))
        evaluated[quality] = image.spectrum["nfe"]

    for event in client.images.generate(prompt="red apple", stream=True, extra_body={"seed": 1, "speedup": 3}):
        if event.type == "image_generation.progress":
            print(f"\r{event.step} of {event.steps} steps", end="")
        else:
            (OUT / "streamed.png").write_bytes(base64.b64decode(event.b64_json))
            evaluated["streamed"] = event.spectrum["nfe"]

    print(f"\nThe images are in {OUT}; evaluated steps: {evaluated}")
    return evaluated


if __name__ == "__main__":
    main()
