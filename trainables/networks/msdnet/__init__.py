"""MSDNets: dense layers on several scales, with exits on the way."""
