"""`builtin/reviews`: labelled English review sentences from a small grammar written for this project.

A sentence is one clause or two. A clause gives an opinion of one side of a film: a word that praises or blames, which
its frame keeps ("is truly sharp", "could hardly be sharper put: more sharp") or turns round ("is not all that sharp",
"is anything but sharp"). Of two clauses one carries the verdict: the last after "but", the main one beside "although".
Words and labels are almost independent of each other, so counting words is weak and reading them in context is not.
The sentences are synthetic: a score on them says that a pipeline works, nothing about real reviews.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache

from ...storage.errors import DataError
from .contract import BATCH_ROWS, Source, nearest

PREFIX = "builtin/"
ROWS = {"train": 4000, "validation": 1000}
SEED = 20240707

PRAISE = """good great strong clever charming sharp fresh moving engaging convincing memorable inspired lively
rewarding satisfying graceful elegant thoughtful funny warm honest vivid thrilling tender subtle bold gripping
delightful polished original witty confident touching lovely impressive absorbing believable enjoyable playful
stylish""".split()
BLAME = """bad weak dull clumsy tedious flat stale lifeless tired forgettable shallow messy boring awkward lazy hollow
unconvincing sloppy cold predictable bland tiresome annoying careless empty confused cheap dreary silly stiff wooden
grating muddled ugly irritating pointless contrived cynical sluggish disappointing""".split()

SINGULAR = """the acting|the story|the script|the pacing|the music|the camera work|the dialogue|the ending|the humour
|the lead actor|the cast|the plot|the direction|the opening scene|the second half|the final act|the romance
|the villain|the soundtrack|the editing|this comedy|this thriller|this drama|the central idea|the love story
|the main character|the mood|the storytelling|the costume work|the supporting cast"""
PLURAL = """the jokes|the performances|the characters|the songs|the action scenes|the special effects|the songs
|the quiet moments|the lead actors|the twists|the fight scenes|the dialogues|the settings|the side stories"""

KEEPS = """is|is {more}|was {more}|feels {more}|seems {more}|turns out to be {more}|remains {more}|could hardly be more
|is never less than|never stops being|is nothing if not|never fails to be|could not be more|is not just {more} but
downright"""
TURNS = """is not {less}|was not {less}|does not feel {less}|does not seem {less}|is hardly|is anything but|is far from
|is by no means {less}|never feels {less}|never becomes {less}|is no longer|never turns out to be {less}
|is not in any way|fails to be {less}|stops being"""
MORE = "|very|really|truly|quite|rather|a little|somewhat|remarkably|deeply|consistently|pretty"
LESS = "||very|really|all that|particularly|especially|even remotely|exactly|so|quite"

PEOPLE = "i|we|my friends|the audience|the critics|most people|my sister|nobody around me did anything but"
"""Who feels something about a side of the film."""
