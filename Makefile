PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PLUGINS = ./plugins/perfuse-openreg ./plugins/perfuse-executorch ./plugins/perfuse-xla
PYTEST = $(BIN)/python -m pytest -n auto --durations=10
PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

TARGETS = torch:cpu onnxruntime:cpu openvino:CPU xla:cpu executorch openreg:0 \
  coreml-interpreter:cpu neuron-interpreter:cpu
MODELS = shapes random-sd random-sdxl
# Small random models of the other pipelines, a line each in the picture.
BRIEF = random-refiner random-inpaint random-pix2pix random-depth random-upscale random-variation \
  random-control random-union random-adapter random-ip-adapter random-edited random-guided \
  random-shallow random-cached random-steered random-sd-checked random-lcm random-unclip random-estimated \
  random-latent-upscaler random-flux random-flux-ip-adapter random-sd3 random-sd3-ip-adapter random-pixart random-z-image random-klein random-qwen-image random-qwen-edit \
  random-qwen-image-21 random-sana random-sprint random-chroma random-lumina2 random-cogview4 random-aura random-dit random-hunyuan \
  random-int8
# Of pipelines that run through Diffusers.
THROUGH = random-cogview3
TITLES = --title "random-edited=mask, ControlNet, PAG" --title "random-control=two ControlNets" \
  --title "random-guided=all guiders" --title "random-ip-adapter=two IP-Adapters" \
  --title "random-shallow=DeepCache" --title "random-int8=SD, 8 bits" --title "random-cached=DBCache" --title "random-flux=FLUX.1" --title "random-sd3=SD 3.5" \
  --title "random-flux-ip-adapter=FLUX.1, IP-Adapter" --title "random-sd3-ip-adapter=SD 3.5, IP-Adapter" \
  --title "random-z-image=Z-Image" --title "random-klein=FLUX.2 klein" --title "random-qwen-image=Qwen-Image" \
  --title "random-qwen-edit=Qwen-Image-Edit" \
  --title "random-sana=Sana" --title "random-sprint=Sana-Sprint" --title "random-chroma=Chroma" \
  --title "random-lumina2=Lumina 2" \
  --title "random-steered=steered prompts, FreeU, T-GATE" --title "random-union=ControlNet-Union" \
  --title "random-refiner=SD XL refiner" --title "random-pix2pix=InstructPix2Pix" \
  --title "random-inpaint=inpainting" --title "random-depth=depth to image" \
  --title "random-upscale=x4 upscaling" --title "random-variation=image variation" \
  --title "random-adapter=T2I-Adapter, tiny VAE" --title "random-sd-checked=safety checker" \
  --title "random-unclip=unCLIP" --title "random-estimated=estimated depth" \
  --title "random-latent-upscaler=latent upscaling" --title "random-lcm=LCM" \
  --title "random-pixart=PixArt" --title "random-aura=AuraFlow" --title "random-dit=DiT" --title "random-hunyuan=Hunyuan-DiT" --title "random-cogview4=CogView 4" \
  --title "random-qwen-image-21=Qwen-Image 2.1" --title "random-cogview3=CogView 3 Plus, bridged"
PICTURE = --data docs/conformance.json --picture docs/conformance.svg
BRIDGED = --data docs/bridged.json --page docs/bridged.md

.PHONY: demo quick test check fuzz moments bench bench-large conformance conformance-tasks bridged docs graphs

# Draws a grid with the bundled model: captions down, targets across. Leaves demo.png.
demo: $(VENV)/all
	$(BIN)/python -m perfuse.shapes.demo --output demo.png

# While you work: the core's tests that need no export, no engine, no process of their own.
quick: $(VENV)/dev
	$(PYTEST) -m "not export and not slow" --ignore=tests/core/plugins tests/core tests/conformance/judge tests/test_arrows.py

# What the first run exports and records, the second finds. Tests often wait for a process of their
# own, so there is a worker more than two cores have need of.
test: export PERFUSE_TEST_CACHE = build/tests
test: $(VENV)/plugins
	rm -rf $(PERFUSE_TEST_CACHE)
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder plugins/perfuse-executorch plugins/perfuse-xla plugins/perfuse-openreg tests
	PYTHONPATH=$(abspath $(VENV))/mutants $(PYTEST) -n 3 --dist load plugins/perfuse-mutants
	rm -rf $(PERFUSE_TEST_CACHE)

check: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m perfuse_conformance.ratchet
	$(BIN)/python -m perfuse_conformance.matrix $(PICTURE) --check
	$(BIN)/python -m perfuse_conformance.bridged $(BRIDGED) --check
	$(BIN)/python -m pytest --doctest-modules core/perfuse
	$(MAKE) --no-print-directory docs

# Builds the documentation into build/site; a link or a name that is not there fails.
docs: $(VENV)/dev
	$(BIN)/python -m zensical build --strict --clean

# Runs what the tests ask a part of, measures every backend on every model, and draws README's matrix.
# Takes half an hour.
conformance: $(VENV)/plugins
	$(BIN)/python -m perfuse.known.make --check
	$(PYTEST) -m exhaustive tests plugins/perfuse-executorch plugins/perfuse-openreg plugins/perfuse-xla
	PYTHONPATH=$(abspath $(VENV))/mutants $(PYTEST) -n 3 --dist load -m exhaustive plugins/perfuse-mutants
	for model in $(MODELS); do for target in $(TARGETS); do \
	  $(BIN)/perfuse conformance --backend $$target --model $$model --report build/$$model-$$target \
	    || exit 1; done; done
	$(BIN)/python -m perfuse_conformance.matrix build/*/*/results.json \
	  --title "random-sd=small random SD" --title "random-sdxl=small random SD XL" $(PICTURE)

# The same for every other pipeline: each part and each picture on three engines, each part in float32 on
# the others. Takes hours.
conformance-tasks: $(VENV)/plugins
	for model in $(BRIEF); do for target in $(TARGETS); do \
	  case $$target in torch:*|onnxruntime:*|openvino:*) asked="";; \
	    *) asked="--level L1 --precision float32";; esac; \
	  $(BIN)/perfuse conformance --backend $$target --model $$model $$asked \
	    --report build/$$model-$$target; done; done
	for model in $(THROUGH); do for target in onnxruntime:cpu openvino:CPU; do \
	  $(BIN)/perfuse conformance --backend $$target --model $$model \
	    --report build/$$model-$$target; done; done
	$(BIN)/python -m perfuse_conformance.matrix build/random-*/*/results.json \
	  $(foreach model,$(BRIEF) $(THROUGH),--brief $(model)) $(PICTURE) $(TITLES)

# Draws with a small pipeline of every class of Diffusers that there is a recipe for, and writes the
# table in the documentation. Takes an hour.
bridged: $(VENV)/dev
	$(BIN)/python -m perfuse_conformance.bridged $(BRIDGED)

# Makes the graphs that come along; those that are there and right stay. Takes half an hour for all.
graphs: $(VENV)/dev
	$(BIN)/python -m perfuse.known.make

# Tries inputs that nobody meant, others each time, for at most an hour. So many for each of some fifty
# tests, a quarter for those that take long: FUZZ_INPUTS=130 are five thousand.
FUZZ_INPUTS ?= 20000
fuzz: $(VENV)/dev
	FUZZ_INPUTS=$(FUZZ_INPUTS) timeout 3600 $(PYTEST) --dist load -m "" tests/fuzz || test $$? -eq 124

# Ends drawings, exports, graphs and conformance at random moments: each so often, by each of two signals.
FUZZ_MOMENTS ?= 25
moments: $(VENV)/dev
	FUZZ_MOMENTS=$(FUZZ_MOMENTS) $(PYTEST) -m exhaustive tests/test_at_any_moment.py

bench: $(VENV)/dev
	$(BIN)/python benchmarks/run.py

# One step of the largest real configuration that fits 24 GB, in bfloat16 with random weights, on each engine.
# Writes 9 GB, once. LARGE=sd3.5-medium or klein-4b are others.
LARGE ?= sana-1.6b
bench-large: $(VENV)/dev
	$(BIN)/python benchmarks/large.py --case $(LARGE)

$(VENV)/all: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	touch $@

# Installed as a stranger's would be, not linked.
$(VENV)/plugins: $(VENV)/dev $(shell find plugins -name '*.py' -o -name '*.toml')
	$(PIP) --force-reinstall --no-deps $(PLUGINS)
	$(PIP) $(PLUGINS)
	$(PIP) --no-deps --upgrade --target $(VENV)/mutants ./plugins/perfuse-mutants
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $@
