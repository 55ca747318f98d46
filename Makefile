# Every target installs what it needs into one .venv and says what it is doing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= ../shared/data

.PHONY: demo test test-slow control evidence space lint bench clean

$(READY): pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (about 2 minutes the first time) =="
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,demo,space,metric,dev]"
	@touch $(READY)

demo: $(READY)  ## the whole road on the embedded synthetic shop, about 5 minutes on 2 newer cores, a quarter of an hour on old ones
	@echo "== the whole road on the embedded shop =="
	$(BIN)/pulse run --preset demo --processes 2

test: $(READY)  ## everything a change must pass, under 10 minutes on 2 cores
	@echo "== tests, in two processes of one thread each =="
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 2

test-slow: $(READY)  ## the long checks
	$(BIN)/python -m pytest -q -m slow -o faulthandler_timeout=10800

control: $(READY)  ## does the gain of PULSE follow the strength of the motives? (four demo-like worlds, long)
	@echo "== control: motive knob 0, 1/4, 1/2, 1 =="
	$(BIN)/python scripts/control.py
	cp runs/control/control.json hub_cards/reports/control.json

evidence: $(READY)  ## every table of hub_cards/reports/README.md but `make control`'s (DATA=folder of the datasets; days on 2 cores, resumable)
	$(BIN)/python scripts/evidence.py --data $(DATA)
	$(BIN)/pulse run --preset small --run runs/gift-cards \
		--set prepare.reviews=$(DATA)/gift_cards_2018/Gift_Cards_5.json.gz \
		--set prepare.metadata=$(DATA)/gift_cards_2018/meta_Gift_Cards.json.gz \
		--set 'baselines.systems=["encoder-tuned", "sasrec-bce", "sasrec-gbce"]'
	cp runs/gift-cards/report.json hub_cards/reports/gift-cards.json
	$(BIN)/python scripts/plain_controls.py --run runs/gift-cards
	$(BIN)/python scripts/plain_controls.py --run runs/evidence/luxury-beauty-dedup-1x9-s2
	$(BIN)/python scripts/protocols.py --run runs/evidence/luxury-beauty-dedup-1x9-s1 --users 500 --read 20 \
		--out hub_cards/reports/protocols-of-luxury-beauty.json
	$(BIN)/python scripts/protocols.py --run runs/evidence/luxury-beauty-dedup-1x9-minilm-s0 --users 9154 --most 20 \
		--read 20 --out hub_cards/reports/protocols-of-luxury-beauty-minilm.json
	$(BIN)/python scripts/cross_domain.py --reviews $(DATA)/video_games_2018/interactions.jsonl.gz \
		--metadata $(DATA)/video_games_2018/items.jsonl.gz
	$(BIN)/python scripts/ablations.py --run runs/evidence/luxury-beauty-dedup-1x9-s1 --users 2000 --arms a b
	@test -e runs/demo/report.json || $(MAKE) demo
	cp runs/demo/report.json hub_cards/reports/demo.json
	$(BIN)/python scripts/steering.py --run runs/demo
	$(BIN)/pulse run --preset demo --set seed=8 --run runs/demo-8
	cp runs/demo-8/report.json hub_cards/reports/demo-seed-8.json
	$(BIN)/python scripts/ablations.py --run runs/demo --arms a b tree space
	$(BIN)/python scripts/ablations.py --run runs/demo --arms words --out hub_cards/reports/ablations-of-demo-words.json
	$(BIN)/python scripts/leak_worth.py --run runs/demo --users 500 --out hub_cards/reports/leak-worth-of-demo.json
	$(BIN)/python scripts/outside_judge.py --data $(DATA) --thought-space runs/demo/thought_space/model
	$(BIN)/python scripts/real_rationales.py --data $(DATA)
	$(BIN)/python scripts/digital_music.py runs/rollouts --data $(DATA)
	$(BIN)/python scripts/evidence.py digital-music-people-1x9 --data runs/rollouts
	$(BIN)/python scripts/question_answering.py --seed 11 --data $(DATA)/hotpotqa/ircot_dev_500.jsonl.gz \
		--thought-space demo=runs/demo/thought_space/model gift-cards=runs/gift-cards/thought_space/model
	$(BIN)/python scripts/render_readme.py

space: $(READY)  ## the interactive Space on this machine, over runs/demo (made first if it is not there)
	$(BIN)/python spaces_app/app.py

lint: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## speed: each a ratio in one run, beside its arithmetic limit
	@test -e runs/demo/report.json || $(MAKE) demo
	$(BIN)/python scripts/bench_scoring.py
	$(BIN)/python scripts/bench_scoring.py --candidates 100
	$(BIN)/python scripts/bench_scoring.py --candidates 1000 --repeats 1
	$(BIN)/python scripts/bench_scoring.py --train
	$(BIN)/python scripts/bench_scoring.py --train --candidates 100
	$(BIN)/python scripts/bench_ranking.py
	$(BIN)/python scripts/bench_softmax.py
	$(BIN)/python scripts/bench_trees.py
	$(BIN)/python scripts/bench_prepare.py
	$(BIN)/python scripts/bench_thought_space.py
	$(BIN)/python scripts/bench_recommend.py

clean:
	rm -rf $(VENV) runs
