"""The embedded default: a simulated dataset in NSD's formats, and small models trained on its kind of scenes."""
