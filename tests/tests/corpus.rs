//! The fuzzers' corpus, without a fuzzer.

use std::{fs, path::Path};

#[path = "../fuzz/src/checks.rs"]
mod checks;

/// Runs one target's corpus, which must be there.
fn all_of(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        check(&fs::read(&path).expect("readable"));
        count += 1;
    }
    assert!(count >= 5, "{target} has a corpus of {count}");
}

#[test]
fn consistency_tokens_hold_for_the_corpus() {
    all_of("tokens", checks::tokens);
}

#[test]
fn page_tokens_hold_for_the_corpus() {
    all_of("page_tokens", checks::page_tokens);
}

#[test]
fn ids_hold_for_the_corpus() {
    all_of("ids", checks::ids);
}

#[test]
fn subjects_hold_for_the_corpus() {
    all_of("subjects", checks::subjects);
}

#[test]
fn payloads_hold_for_the_corpus() {
    all_of("payloads", checks::payloads);
}

#[test]
fn messages_hold_for_the_corpus() {
    all_of("messages", checks::messages);
}
