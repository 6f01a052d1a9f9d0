"""The small world: 64-pixel images of one colored shape, in which every edit can be made and checked exactly.

scene.py, reader.py, compare.py         what an image shows, read back from its pixels, and when two agree
easy_vqa.py, drafts.py                  the questions and images of easy-VQA
program.py, wording.py, questions.py    what an instruction means, how it is said, what can be asked
topics.py, instructions.py, asking.py   drawing instructions that have to be understood
rules.py, editor.py, verifier.py        the stages of synthesis without any model
edits.py                                edits planned one by one: any number, in exact shares
suite.py, suite_items.py, scoring.py    the suite `small_world` of `uniedit evaluate`
base/                                   how the small base models in assets/ were trained
quickstart/                             the whole method once: `uniedit quickstart`
"""
