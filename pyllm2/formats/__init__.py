"""Files to named arrays, token ids or vocabularies, and back; no module here knows a model."""
