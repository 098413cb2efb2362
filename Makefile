PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check install clean lock

demo: install  ## the whole chain on a made image set, in minutes
	$(BIN)/python examples/generate.py --out examples
	$(BIN)/distilltool distill examples/teacher.onnx examples/imgs/ --out runs/demo \
		--student timm:mobilenetv4_conv_small_050 --time-budget 6m
	$(BIN)/distilltool eval runs/demo --data examples/unseen --teacher examples/teacher.onnx
	$(BIN)/distilltool export runs/demo

test: install  ## the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lock: install  ## pin what is installed now
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf .venv runs examples/imgs examples/unseen
