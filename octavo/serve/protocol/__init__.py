"""What clients send and what they get back, in OpenAI's shapes.

Fields that nobody here knows are ignored, because clients send many that change nothing. Fields that would change
the answer and that we do not compute are refused: a client must not believe that it got what it asked for.
"""
