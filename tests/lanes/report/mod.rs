// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Suites of scenarios that are run and recorded, and their report in a real browser.

mod browser;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use spec_testing::skipped;

use self::browser::Browser;
use crate::lab::{lacuna, skipped_without_kvm};

/// Two scenarios, as small as they can be.
const SUITE: &str = "
name = 'tiny'
runs = 2
[all]
memory = '64M'
in-use = '8M'
freed = '16M'
hints = ['off', 'on']
[[scenario]]
name = 'freed & <b>bold</b>'
about = 'Memory that was freed.'
[[scenario]]
name = 'slow'
about = 'A slow link.'
max-bandwidth = '16M'
max-guest-slowdown = 50
";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn a_suite_is_run_recorded_and_reported() {
    if skipped_without_kvm("bare, compare --suite") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (suite, report) = (
        folder.path().join("tiny.toml"),
        folder.path().join("report.html"),
    );
    fs::write(&suite, SUITE).expect("a file");
    let runs = folder.path().join("runs");
    let args = [
        "compare",
        "--suite",
        text(&suite),
        "--record",
        text(&runs),
        "--report",
        text(&report),
    ];
    let output = lacuna(&args);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("slow") && table.contains(" off "), "{table}");
    let day = fs::read_dir(&runs).expect("a folder").next();
    let record = day.expect("a day").expect("a day").path().join("tiny.json");
    let json: Value =
        serde_json::from_str(&fs::read_to_string(&record).expect("a record")).expect("JSON");
    for scenario in json["scenarios"].as_array().expect("scenarios") {
        let runs = scenario["runs"].as_array().expect("runs");
        assert_eq!(runs.len(), 4);
        for run in runs {
            let looks = |column: &str| run["course"][column].as_array().expect("a column").len();
            assert!(
                looks("ms") > 0 && looks("ms") == looks("remaining"),
                "{run}"
            );
            assert!(looks("events") > 4, "{run}");
            assert_eq!(run["pages_wrong"], 0);
        }
    }
    // The record alone makes the same report.
    let again = folder.path().join("again.html");
    let output = lacuna(&[
        "compare",
        "--from-record",
        text(&record),
        "--report",
        text(&again),
    ]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        fs::read(&report).expect("a page"),
        fs::read(&again).expect("a page")
    );
    if let Some(mut browser) = browser() {
        look_at(&mut browser, &report, &json);
    }
}

#[test]
fn every_recorded_suite_can_be_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = recorded();
    assert!(!records.is_empty(), "a suite was recorded");
    let mut browser = browser();
    for record in records {
        let page = folder.path().join("report.html");
        let output = lacuna(&[
            "compare",
            "--from-record",
            text(&record),
            "--report",
            text(&page),
        ]);
        assert!(output.status.success(), "{}: {output:?}", record.display());
        let json = fs::read_to_string(&record).expect("a record");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        if let Some(browser) = &mut browser {
            look_at(browser, &page, &json);
        }
    }
}

#[test]
fn a_suite_that_is_wrong_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let suite = folder.path().join("suite.toml");
    fs::write(&suite, "[[scenario]]\nname = 'one'\nmemory = 'much'\n").expect("a file");
    let output = lacuna(&["compare", "--suite", text(&suite)]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("suite.toml, line 3: `memory`: invalid value"),
        "{said}"
    );
    let output = lacuna(&["compare", "--report", "page.html"]);
    assert_eq!(
        output.status.code(),
        Some(2),
        "a report of nothing: {output:?}"
    );
}

fn browser() -> Option<Browser> {
    let browser = Browser::start();
    if browser.is_none() {
        skipped(
            "the report in a browser: there is no `chromium` (a Debian package; `tests/run report` installs it)",
        );
    }
    browser
}

/// The records of suites in `tests/runs`.
fn recorded() -> Vec<PathBuf> {
    let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs");
    let files = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path())
    };
    let all = files(runs).flat_map(files);
    all.filter(|path| path.extension().is_some_and(|it| it == "json"))
        .collect()
}

/// Each figure: its caption, how large its picture is, and whether all of its shapes lie inside.
const FIGURES: &str = "
[...document.querySelectorAll('figure')].map(figure => {
  const svg = figure.querySelector('svg'), outer = svg.getBoundingClientRect();
  const outside = [...svg.querySelectorAll('path,rect,line,text')].filter(shape => {
    const box = shape.getBoundingClientRect();
    return box.left < outer.left - 1 || box.right > outer.right + 1 || box.top < outer.top - 1 || box.bottom > outer.bottom + 1;
  }).map(shape => shape.outerHTML);
  return {title: figure.querySelector('b').textContent, width: outer.width, height: outer.height, outside,
          curves: svg.querySelectorAll('path').length, bars: svg.querySelectorAll('rect').length,
          label: svg.getAttribute('aria-label')};
})";
const SCROLLS: &str = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
const PAPER: &str = "getComputedStyle(document.body).backgroundColor";
const FOCUSED: &str = "(() => { const it = document.activeElement; return it.tagName + ' ' + [...document.querySelectorAll('figure')].indexOf(it) })()";

/// Looks at the report of `record`: every plot is there and whole, in light and dark, narrow and wide, and is reached with the
/// keyboard; nothing complains, and nothing else is asked for.
fn look_at(browser: &mut Browser, page: &Path, record: &Value) {
    browser.resize(1280);
    browser.open(page);
    let scenarios = record["scenarios"].as_array().expect("scenarios");
    let has_gaps = |it: &&Value| !it["runs"][0]["guest_gap_ms"].is_null();
    let gaps = scenarios.iter().filter(has_gaps).count();
    let bars = 3 + usize::from(gaps > 0) + gaps;
    let scenarios = scenarios.len();
    let mut figures = Vec::new();
    for width in [1280, 420] {
        browser.resize(width);
        let seen = browser.evaluate(FIGURES);
        figures = seen.as_array().expect("figures").clone();
        let with_bars = figures.iter().filter(|it| it["bars"].as_u64() > Some(0));
        assert_eq!(with_bars.count(), bars);
        let curves = figures.iter().filter(|it| it["curves"].as_u64() > Some(0));
        assert_eq!(curves.count(), 3 * scenarios);
        for figure in &figures {
            assert!(figure["width"].as_f64() > Some(300.0), "{width}: {figure}");
            assert!(figure["height"].as_f64() > Some(50.0), "{width}: {figure}");
            assert_eq!(
                figure["outside"],
                serde_json::json!([]),
                "{width}: {figure}"
            );
            assert!(
                figure["label"].as_str().is_some_and(|it| it.len() > 10),
                "{figure}"
            );
        }
        assert_eq!(
            browser.evaluate(SCROLLS),
            false,
            "{width} points are enough"
        );
    }
    browser.looks("light", "screen");
    let light = browser.evaluate(PAPER);
    browser.looks("dark", "screen");
    assert_ne!(browser.evaluate(PAPER), light, "dark is another paper");
    browser.looks("dark", "print");
    assert_eq!(browser.evaluate(PAPER), light, "paper is light");
    browser.looks("light", "screen");
    // Links, figures, and tables with their headings: the most that there may be.
    let mut reached = std::collections::BTreeSet::new();
    for _ in 0..20 + figures.len() + 4 * scenarios {
        browser.press_tab();
        let focused = browser.evaluate(FOCUSED);
        reached.insert(focused.as_str().expect("a text").to_owned());
    }
    for number in 0..figures.len() {
        assert!(
            reached.contains(&format!("FIGURE {number}")),
            "{number}: {reached:?}"
        );
    }
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    let page = format!("file://{}", page.display());
    let elsewhere: Vec<_> = (browser.requests().into_iter())
        .filter(|url| *url != page && !url.starts_with("data:"))
        .filter(|url| url != "about:blank")
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}
