// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The folders of a crate have an order, and each uses only those before it. In some crates, no two files may use each
//! other in a circle.
//!
//! The test reads the sources as text. It looks at paths that begin with `crate`, `super`, `self` or a child module.
//! Unit tests are left out, because they may use anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files and folders directly in a crate's `src`, except `lib.rs` and `main.rs`, lowest first.
const ORDERS: &[(&str, &[&str])] = &[
    (
        "host-migrator/src",
        &[
            "panics",
            "pace",
            "memory",
            "compression",
            "vm",
            "dirty_rate",
            "report",
            "rule",
            "walk",
            "convergence",
            "wire",
            "hints",
            "paging",
            "snapshot",
            "sink",
            "ownership",
            "destination",
            "source",
        ],
    ),
    (
        "device/src",
        &[
            "sandbox",
            "threads",
            "sockets",
            "memory",
            "trace",
            "virtqueue",
            "guest",
            "hints",
            "balloon",
            "vhost_user",
            "control",
            "agent",
            "metrics",
            "args",
            "daemon",
        ],
    ),
];

/// The crates in which no files may use each other in a circle.
const WITHOUT_CIRCLES: &[&str] = &["device/src", "host-migrator/src"];

/// The path of a module in its crate.
type Module = Vec<String>;

#[test]
fn a_folder_uses_only_those_before_it() {
    for (source, order) in ORDERS {
        let files = files_of(&root().join(source));
        let found: BTreeSet<&str> = files.keys().filter_map(|module| top(module)).collect();
        assert_eq!(found, order.iter().copied().collect(), "{source}");
        let place = |module: &Module| {
            let top = top(module)?;
            order.iter().position(|name| *name == top)
        };
        for (module, used) in uses(&files) {
            let Some(own) = place(&module) else {
                continue;
            };
            for other in used {
                let other_place = place(&other);
                assert!(
                    other_place.is_some_and(|place| place <= own),
                    "{source}: {} uses {}, which stands above it",
                    module.join("::"),
                    other.join("::"),
                );
            }
        }
    }
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    for source in WITHOUT_CIRCLES {
        let graph = uses(&files_of(&root().join(source)));
        if let Some(circle) = circle(&graph) {
            let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            panic!("{source}: {}", names.join(" uses "));
        }
    }
}

#[test]
fn a_circle_is_found_however_the_path_is_written() {
    let text = |name: &str| match name {
        "a" => "mod c; use crate::{x::Thing, b::{self, Other}};",
        "a::c" => "fn f() { super::super::b::g(); } // crate::d",
        "b" => {
            "fn g() -> &'static str { let _ = '\"'; \"crate::d\" } #[cfg(test)] mod tests { use crate::d; }"
        }
        _ => "fn h() { crate::a::c::f() } /* crate::b */",
    };
    let names = ["a", "a::c", "b", "d"];
    let module = |name: &str| -> Module { name.split("::").map(String::from).collect() };
    let files: BTreeMap<Module, String> = names
        .iter()
        .map(|name| (module(name), text(name).into()))
        .collect();
    let graph = uses(&files);
    let used = |name| graph[&module(name)].clone();
    assert_eq!(used("a"), BTreeSet::from([module("b")]));
    assert_eq!(used("a::c"), BTreeSet::from([module("b")]));
    assert_eq!(used("b"), BTreeSet::new());
    assert_eq!(used("d"), BTreeSet::from([module("a::c")]));
    assert_eq!(circle(&graph), None);
    let mut files = files;
    files.insert(module("b"), "use super::d;".into());
    let found = circle(&uses(&files)).expect("there is a circle");
    assert_eq!(found.first(), found.last());
    assert_eq!(found.len(), 4, "{found:?}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn top(module: &Module) -> Option<&str> {
    module.first().map(String::as_str)
}

/// The text of every module below `source`. The crate's root has an empty path; `main.rs` is left out.
fn files_of(source: &Path) -> BTreeMap<Module, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![(Module::new(), source.to_owned())];
    while let Some((module, folder)) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy();
            let mut child = module.clone();
            if path.is_dir() {
                child.push(name.into());
                folders.push((child, path));
            } else if path.extension().is_some_and(|it| it == "rs") && name != "main" {
                if name != "mod" && name != "lib" {
                    child.push(name.into());
                }
                let text = fs::read_to_string(&path).expect("a source file");
                files.insert(child, text);
            }
        }
    }
    files
}

/// The other files that each file uses.
fn uses(files: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let used_by = |(module, text): (&Module, &String)| {
        let used = paths(module, text, files)
            .into_iter()
            .filter_map(|mut path| {
                while !files.contains_key(&path) {
                    path.pop()?;
                }
                Some(path)
            })
            .filter(|other| other != module && !other.is_empty())
            .collect();
        (module.clone(), used)
    };
    files.iter().map(used_by).collect()
}

/// The paths in `text` that lead into this crate, from its root.
fn paths(module: &Module, text: &str, files: &BTreeMap<Module, String>) -> Vec<Module> {
    let tokens = tokens(text);
    let mut paths = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let is_first = at == 0 || !["::", "."].contains(&tokens[at - 1].as_str());
        if !is_first || tokens.get(at + 1).is_none_or(|next| next != "::") {
            continue;
        }
        let mut child = module.clone();
        child.push(token.clone());
        let base = match token.as_str() {
            "crate" => Module::new(),
            "self" => module.clone(),
            "super" => module[..module.len().saturating_sub(1)].to_vec(),
            _ if files.contains_key(&child) => child,
            _ => continue,
        };
        follow(&base, &tokens[at + 2..], &mut paths);
    }
    paths
}

/// Follows the path after `base`, which may branch. Returns the number of its tokens.
fn follow(base: &Module, tokens: &[String], paths: &mut Vec<Module>) -> usize {
    let mut path = base.clone();
    let mut at = 0;
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("super") => {
                path.pop();
            }
            Some("{") => {
                at += 1;
                while let Some(token) = tokens.get(at).filter(|token| *token != "}") {
                    at += match token.as_str() {
                        "," => 1,
                        _ => follow(&path, &tokens[at..], paths).max(1),
                    };
                }
                return at + 1;
            }
            Some(name) if name.starts_with(|it: char| it.is_alphabetic() || it == '_') => {
                path.push(name.into());
            }
            _ => {
                paths.push(path);
                return at;
            }
        }
        at += 1;
        if tokens.get(at).is_none_or(|token| token != "::") {
            paths.push(path);
            return at;
        }
        at += 1;
    }
}

/// The words and signs of a source text up to its unit tests, without comments, strings and characters.
fn tokens(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let text = text.split("#[cfg(test)] mod ").next().unwrap_or(text);
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            string_length(rest)
        } else if first == '\'' {
            character_length(rest)
        } else if rest.starts_with("r\"") || rest.starts_with("r#\"") {
            let hashes = if rest.starts_with("r#") { "\"#" } else { "\"" };
            let start = rest.find('"').map_or(rest.len(), |at| at + 1);
            let end = rest[start..].find(hashes);
            end.map_or(rest.len(), |end| start + end + hashes.len())
        } else if first.is_alphanumeric() || first == '_' {
            let is_part = |it: char| it.is_alphanumeric() || it == '_';
            let end = rest.find(|it| !is_part(it)).unwrap_or(rest.len());
            tokens.push(rest[..end].into());
            end
        } else if rest.starts_with("::") {
            tokens.push("::".into());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.into());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of the string literal at the beginning of `text`.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the character literal at the beginning of `text`; for a lifetime, that of its sign.
fn character_length(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => {
            let end = text.get(3..).and_then(|rest| rest.find('\''));
            end.map_or(1, |at| at + 4)
        }
        Some(_) => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// A circle, if there is one. Its first file is also its last.
fn circle(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut done = BTreeSet::new();
    graph
        .keys()
        .find_map(|module| visit(module, graph, &mut Vec::new(), &mut done))
}

fn visit(
    module: &Module,
    graph: &BTreeMap<Module, BTreeSet<Module>>,
    trail: &mut Vec<Module>,
    done: &mut BTreeSet<Module>,
) -> Option<Vec<Module>> {
    if let Some(start) = trail.iter().position(|it| it == module) {
        let mut circle = trail[start..].to_vec();
        circle.push(module.clone());
        return Some(circle);
    }
    if !done.insert(module.clone()) {
        return None;
    }
    trail.push(module.clone());
    let found = graph
        .get(module)
        .into_iter()
        .flatten()
        .find_map(|other| visit(other, graph, trail, done));
    trail.pop();
    found
}
