"""The Hugging Face Hub: artifacts published with a card, and loaded without trust.

An index, EK-FAC factors and a result are dataset repositories, a report is a static Space, and a model takes along
what lies in `output_dir/influence`.
"""
