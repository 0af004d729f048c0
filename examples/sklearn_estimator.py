"""A neural network as an estimator of scikit-learn, on a pandas table with labels that are texts.

Shows accuracy and time left, keeps the curves, and takes its place in a grid search.

python examples/sklearn_estimator.py
python examples/sklearn_estimator.py --ranks 4    # each fit on four ranks, which it starts itself
sorix-dist plot runs/wine                         # the curves

Needs pandas and scikit-learn, which ships the data set.
"""

from __future__ import annotations

import argparse

from sklearn.datasets import load_wine
from sklearn.metrics import classification_report
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

import sorix_dist as sx
from sorix_dist.sklearn import Classifier


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ranks", type=int, help="number of ranks for each fit")
    options.add_argument("--record", metavar="DIR", default="runs/wine", help="where the curves go")
    args = options.parse_args()

    wine = load_wine(as_frame=True)
    table = wine.data.assign(grower=[f"grower {number}" for number in wine.target])
    train, test = train_test_split(table, test_size=0.3, random_state=0, stratify=table["grower"])
    x, y = train.drop(columns="grower"), train["grower"]

    classifier = Classifier(
        (32,), max_iter=40, batch_size=32, learning_rate=0.005, early_stopping=True, random_state=0,
        verbose=True, record=args.record, num_proc=args.ranks,
    )  # fmt: skip
    classifier.fit(x, y)
    sx.print(classification_report(test["grower"], classifier.predict(test.drop(columns="grower"))))

    pipeline = make_pipeline(PolynomialFeatures(), Classifier(max_iter=20, batch_size=32, random_state=0))
    search = GridSearchCV(pipeline, {"polynomialfeatures__degree": [1, 2]}, cv=3).fit(x, y)
    accuracy = search.score(test.drop(columns="grower"), test["grower"])
    sx.print(f"best {search.best_params_}, test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
