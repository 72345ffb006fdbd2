"""What takes long: linear probes, and ranks in retrieval.

Solvers of linear probes: whole regularisation paths of logistic regression and sets of linear SVMs, batched.

`logistic` and `svm` are what others call. Both state scikit-learn's objectives as sums over problems that share
their features (`losses`), walk over these in row blocks (`rows`) and minimise all of them together (`newton`).

`ranking` compares images and texts in blocks, and `neighbours` samples.
"""
