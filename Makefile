# Targets for people who change vggnet. Users need none of these: see README.md.
PYTHON ?= python3
CC ?= cc
# make peers: an interpreter that has benchmarks/peers.txt
PEERS ?= $(PYTHON)

.PHONY: build test cuda-test lint nightly sanitize werror wheel bench peers localize fashion-mnist paper-tables parity notebooks import-time clean

build: ## the extension in place, for working in the tree
	$(PYTHON) -m pip install -q -e '.[test]'

test: build ## what CI runs: lint, stubs and every test that takes seconds
	$(PYTHON) -m pytest

cuda-test: build ## the tests of the CUDA backend alone, on a GPU or, with VGGNET_CUDA_LIBS, on what stands in for one
	$(PYTHON) -m pytest -k cuda tests

lint: ## formatting and style alone
	$(PYTHON) -m pytest -q tests/test_lint.py tests/test_lint_c.py

nightly: build ## every layer of every net at full size, and the optional second opinion of torch==2.13.0
	$(PYTHON) -m pytest -m 'nightly or not nightly'

sanitize: ## the tests of operations and tensors under AddressSanitizer and UndefinedBehaviorSanitizer (gcc)
	sh tools/sanitize.sh

werror: ## warnings are errors, with both C compilers and nvcc; objects go to a scratch folder
	sh tools/werror.sh

wheel: ## dist/*.whl for every GPU since Turing, checked: minutes of nvcc, and its headers in this interpreter or in CUDNN_HOME and the like
	PYTHON="$(PYTHON)" sh tools/wheel.sh

bench: build ## speed of convolution by layer, see benchmarks/README.md
	$(PYTHON) -m benchmarks conv2d

peers: build ## net D against other systems, about 15 minutes of a quiet machine; writes docs/speed.*
	$(PYTHON) -m benchmarks peers --python $(PEERS) --out docs/speed

fashion-mnist: build ## the longer documented run: all 60,000 images; results are in docs/results.md
	vggnet train --data fashion-mnist --val 0.05 --batch 32 --lr 0.01 --dropout 0.5 --threshold 0.3 --patience 3 --scale 32,36 --epochs 30 --out runs/fashion-mnist
	vggnet evaluate runs/fashion-mnist/model.safetensors --data fashion-mnist --protocol center --mirror --scales 32,34,36

paper-tables: build ## the paper in miniature, three seeds of about 20 idle minutes each; goes on where it was stopped; see docs/paper-tables.md
	$(PYTHON) -m benchmarks paper-tables --out runs/paper-tables --json benchmarks/paper-tables.json

localize: build ## boxes of clothes on canvases, a few minutes; results are in docs/results.md
	$(PYTHON) -m benchmarks localize --out runs/localize

parity: build ## whole nets against torch==2.13.0 in double precision
	$(PYTHON) -m pytest -m 'nightly or not nightly' tests/test_parity_torch.py

notebooks: build ## run the notebooks and keep what they put out, about a minute
	$(PYTHON) tools/notebooks.py notebooks/*.ipynb

import-time: ## milliseconds of `import vggnet` beyond NumPy's own
	$(PYTHON) tools/import_time.py

clean:
	rm -rf build dist *.egg-info vggnet/*.so .pytest_cache .ruff_cache .mypy_cache
