//! The rooms stand in order: a module uses only those above it.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test that calls them")]

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `lib.rs`, in order.
fn rooms(source: &Path) -> Vec<String> {
    let lib = fs::read_to_string(source.join("lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.map(str::to_owned).collect()
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a text names in `crate::room` and `use crate::{room, …}` paths.
fn used(text: &str, rooms: &[String]) -> Vec<String> {
    let mut used = Vec::new();
    for (at, found) in text.match_indices("crate::") {
        let rest = &text[at + found.len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => {
                let end = group.find("};").unwrap_or(group.len());
                group[..end]
                    .split([',', '{', '}', ' ', '\n'])
                    .map(|name| name.split("::").next().unwrap())
                    .collect()
            }
            None => vec![rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()],
        };
        used.extend(
            names.into_iter().filter(|name| rooms.iter().any(|room| room == name)).map(str::to_owned),
        );
    }
    used
}

fn upward_paths(source: &Path) -> Vec<String> {
    let rooms = rooms(source);
    let mut upward = Vec::new();
    for (level, room) in rooms.iter().enumerate() {
        let mut sources = Vec::new();
        files(&source.join(room), &mut sources);
        for path in sources {
            for name in used(&fs::read_to_string(&path).unwrap(), &rooms) {
                if rooms.iter().position(|other| *other == name) > Some(level) {
                    upward.push(format!("{} uses crate::{name}", path.display()));
                }
            }
        }
    }
    upward
}

#[test]
fn a_module_uses_only_those_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert!(rooms(&source).len() > 5, "lib.rs lists the rooms");
    assert_eq!(upward_paths(&source), Vec::<String>::new());
}

#[test]
fn an_upward_path_is_found_in_every_spelling() {
    let source = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = source.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "pub mod low;\npub mod high;\n");
    write("low/mod.rs", "use crate::high::Thing;\n");
    write("low/group.rs", "use crate::{low::Other, high};\n");
    write("low/inline.rs", "fn f() { crate::high::f() }\n");
    write("high/mod.rs", "use crate::low;\n");
    assert_eq!(upward_paths(source.path()).len(), 3);
}
