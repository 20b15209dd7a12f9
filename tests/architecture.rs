//! Imports run downhill: what commerce is must not know how it is stored, and what is stored not who asks for it.
//!
//! Reads the sources and looks at each `crate::…` path outside of tests. A new folder must be given its place here.

// Clippy's allowance for tests does not reach the functions beside them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top of the hill to its foot. A module may import from lines below its own, and from itself.
const HILL: [&[&str]; 10] = [
    &["main", "lib"],
    &["admin", "migrate"],
    &["node", "demo"],
    &["http", "rehearse"],
    &["metrics"],
    &["actors"],
    &["read_models", "integrations"],
    &["cluster"],
    &["persistence"],
    &["domain"],
];

fn height(module: &str) -> Option<usize> {
    HILL.iter().rev().position(|line| line.contains(&module))
}

/// What is wrong with a module's import of another.
fn uphill(from: &str, to: &str) -> Option<String> {
    match (height(from), height(to)) {
        (Some(from_height), Some(to_height)) if from == to || from_height > to_height => None,
        (Some(_), Some(_)) => Some(format!("{from} must not know {to}")),
        (None, _) => Some(format!("{from} has no place on the hill: give it one in tests/architecture.rs")),
        (_, None) => Some(format!("{to} has no place on the hill: give it one in tests/architecture.rs")),
    }
}

/// The source without comments and tests, and the files that are only compiled for tests.
fn without_tests(path: &Path, source: &str) -> (String, Vec<PathBuf>) {
    let (mut kept, mut test_files) = (String::new(), Vec::new());
    let folder = path.parent().unwrap();
    let holds_folder = matches!(path.file_stem().unwrap().to_str(), Some("mod" | "lib" | "main"));
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line.split("//").next().unwrap());
            kept.push('\n');
            continue;
        }
        let mut given = None;
        let item = lines.by_ref().find(|line| match line.trim().strip_prefix("#[path = \"") {
            Some(path) => {
                given = path.split('"').next().map(|path| folder.join(path));
                false
            }
            None => !line.trim().starts_with('#'),
        });
        let item = item.unwrap();
        if let Some(name) = item.trim().strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            let beside = if holds_folder { folder.to_owned() } else { path.with_extension("") };
            test_files.push(given.unwrap_or_else(|| beside.join(format!("{name}.rs"))));
        } else if item.ends_with('{') {
            // As rustfmt writes it, what begins here ends with a brace at the same depth.
            let end = format!("{}}}", &item[..item.len() - item.trim_start().len()]);
            lines.by_ref().find(|line| *line == end).unwrap();
        }
    }
    (kept, test_files)
}

/// The first names of all `crate::…` paths.
fn imports(source: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (start, _) in source.match_indices("crate::") {
        let rest = &source[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => names.insert(name(rest)),
            Some(group) => {
                let (mut depth, mut at_name) = (0, true);
                for (index, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_name = true,
                        c if at_name && !c.is_whitespace() => {
                            names.insert(name(&group[index..]));
                            at_name = false;
                        }
                        _ => {}
                    }
                }
                true
            }
        };
    }
    names
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

#[test]
fn imports_run_downhill() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = sources(&root).into_iter().map(|path| {
        let (source, test_files) = without_tests(&path, &fs::read_to_string(&path).unwrap());
        (path, source, test_files)
    });
    let read: Vec<(PathBuf, String, Vec<PathBuf>)> = read.collect();
    let tests: BTreeSet<&PathBuf> = read.iter().flat_map(|(_, _, test_files)| test_files).collect();
    for test in &tests {
        assert!(test.exists(), "{} was taken for a test and does not exist", test.display());
    }

    let (mut wrong, mut edges) = (Vec::new(), BTreeSet::new());
    for (path, source, _) in read.iter().filter(|(path, ..)| !tests.contains(path)) {
        let below_root = path.strip_prefix(&root).unwrap();
        let module = below_root.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        for import in imports(source) {
            wrong.extend(uphill(module, &import).map(|what| format!("{}: {what}", below_root.display())));
            edges.insert((module.to_owned(), import));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // That the reading itself works: these are known to be there.
    for (from, to) in [("http", "actors"), ("actors", "persistence"), ("persistence", "domain"), ("node", "read_models")] {
        assert!(edges.contains(&(from.to_owned(), to.to_owned())), "{from} is not seen to import {to}");
    }
}

#[test]
fn an_import_uphill_or_across_is_noticed_and_one_in_a_test_is_not() {
    assert_eq!(uphill("http", "domain"), None);
    assert_eq!(uphill("domain", "domain"), None);
    assert!(uphill("domain", "persistence").is_some());
    assert!(uphill("integrations", "read_models").is_some(), "neither is below the other");
    assert!(uphill("utils", "domain").is_some_and(|what| what.contains("no place")));

    let source = "\
use crate::{actors::{self, Caller}, domain::Cart,
    http};
// use crate::commented::Out;
fn f(x: crate::persistence::Position) {}
#[cfg(test)]
#[path = \"cart_tests.rs\"]
mod tests;
#[cfg(test)]
mod more {
    use crate::node::Node;
}
#[cfg(test)]
mod testing;
";
    let (kept, test_files) = without_tests(Path::new("src/domain/cart.rs"), source);
    let names: Vec<String> = imports(&kept).into_iter().collect();
    assert_eq!(names, ["actors", "domain", "http", "persistence"]);
    assert_eq!(test_files, [Path::new("src/domain/cart_tests.rs"), Path::new("src/domain/cart/testing.rs")]);
}
