"""The JSON Schemas of what Kiln says and is asked: `build.v1.json` (event data, the API) and `request.v1.json`.

They are files, so that they can be had without running anything, and made by `python -m builds.schemas` from the
structs that the code works with, so that they cannot say anything else.
"""
