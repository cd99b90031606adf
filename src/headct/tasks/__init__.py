"""What a trained encoder is good for beside detection, a folder for each task; none of them knows another.

Truth comes as files: this room knows nothing of patients who do not exist.
"""
