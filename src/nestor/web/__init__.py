"""The HTTP faces: parse, call one service, render."""
