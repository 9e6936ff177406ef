"""The report's style sheet: light and dark by the reader's choice, narrow and wide by the window."""

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --panel: #f5f6f8; --ink: #16191d; --soft: #5c6570; --line: #d9dde3;
  --cold: #e3e7ec; --h0: #0b3d91; --h1: #2167c8; --h2: #5b9ae6; --h3: #a5c8f2;
  --boot: #6b7684; --hydrate: #0f8a6a; --mount: #9a6700; --containerd: #2167c8; --sandbox: #8250df; --start: #bf4b1f;
  --good: #0f7a3d; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --panel: #1b2027; --ink: #e8ebef; --soft: #9aa4b1;
  --line: #333b46; --cold: #2a313b; --h0: #d6e6ff; --h1: #86b6f7; --h2: #4684d6; --h3: #2a5391;
  --boot: #8d98a6; --hydrate: #3cc79c; --mount: #d9a521; --containerd: #5b9ae6; --sandbox: #b494f5; --start: #ee8a5d;
  --good: #4ccb83; --bad: #ff8a7f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; } .soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .8rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 2rem; }
.two > *, .tile { min-width: 0; }
.fall { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .25rem .7rem; align-items: center; }
.track { position: relative; height: 1.5rem; background: var(--panel); border-radius: .25rem; }
.bar { position: absolute; top: 0; bottom: 0; border-radius: .25rem; min-width: 3px; }
.time { position: absolute; top: 0; line-height: 1.5rem; font-size: .8rem; white-space: nowrap; padding: 0 .4rem;
  font-variant-numeric: tabular-nums; }
.axis { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; color: var(--soft); margin: .5rem 0; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; margin-right: .35rem;
  vertical-align: -.08rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
td.path { overflow-wrap: anywhere; min-width: 12rem; } code { font-size: .92em; overflow-wrap: anywhere; }
@media print { .tile, .track { break-inside: avoid; } }
"""
