"""The rendered world: seeded scenes, exact ground truth, data sets to train and examine a detector.

``spec`` holds the plain description of a scene, ``scenes`` draws one from a seed, ``families``
builds the meshes, ``renderer`` draws pictures and masks with OpenGL, ``frames`` joins both into
annotated frames, ``dataset`` writes COCO. Nothing here imports OpenGL or OpenCV at import.
"""
