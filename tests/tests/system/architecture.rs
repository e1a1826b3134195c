//! Who may know what: commerce stays in the rooms made for it, and all else could serve another trade.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Where commerce is known: its rules, its encoding, its views, its contracts' callers, and the edges of the services.
const COMMERCE: [&str; 20] = [
    "crates/domain/",
    "crates/codec/",
    "crates/views/",
    "crates/client/",
    "services/command/src/api/",
    "services/command/src/commerce.rs",
    "services/command/src/gateway.rs",
    "services/command/src/service.rs",
    "services/query/src/api/",
    "services/query/src/cache/key.rs",
    "services/query/src/service.rs",
    "services/saga/src/commands.rs",
    "services/saga/src/fold.rs",
    "services/saga/src/session.rs",
    "services/saga/src/step.rs",
    "services/saga/src/store",
    "services/saga/src/worker.rs",
    "services/saga/src/changes.rs",
    "services/souk/",
    // One typed configuration holds also what the shop may set.
    "crates/runtime/src/settings/",
];

/// Words that mean commerce wherever they stand in a name.
const WORDS: [&str; 14] = [
    "product",
    "products",
    "stock",
    "cart",
    "carts",
    "price",
    "prices",
    "payment",
    "shipment",
    "customer",
    "customers",
    "catalog",
    "sku",
    "refund",
];

/// Crates whose very name in a file means commerce.
const CRATES: [&str; 2] = ["souk_domain", "souk_codec"];

/// Crates that hold commerce, each with the only ones that may depend on it.
const DEPENDENTS: [(&str, &[&str]); 3] = [
    ("souk-domain", &["souk-codec", "souk-views", "souk-command", "souk-saga", "souk"]),
    ("souk-codec", &["souk-views", "souk-command", "souk-saga", "souk"]),
    ("souk-views", &["souk-projector", "souk-query", "souk"]),
];

#[test]
fn commerce_is_known_only_in_its_own_rooms() -> Result<()> {
    let root = root();
    let mut knowing = Vec::new();
    let mut used = BTreeSet::new();
    for path in sources(&root)? {
        let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
        let words = commerce_words(&fs::read_to_string(&path)?);
        if words.is_empty() {
            continue;
        }
        match COMMERCE.iter().find(|room| name.starts_with(*room)) {
            Some(room) => drop(used.insert(*room)),
            None => knowing.push(format!("{name}: {}", words.join(", "))),
        }
    }
    ensure!(knowing.is_empty(), "these know commerce and should not:\n{}", knowing.join("\n"));
    let idle: Vec<_> = COMMERCE.iter().filter(|room| !used.contains(*room)).collect();
    ensure!(idle.is_empty(), "these are allowed to know commerce and do not: {idle:?}");
    Ok(())
}

#[test]
fn only_edges_depend_on_what_knows_commerce() -> Result<()> {
    for manifest in manifests(&root())? {
        let text = fs::read_to_string(&manifest)?;
        let package =
            text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).context("a manifest without a name")?;
        // What a package needs for its tests alone it cannot ship.
        let (shipped, _) = text.split_once("[dev-dependencies]").unwrap_or((&text, ""));
        for (holder, allowed) in DEPENDENTS {
            let depends = shipped.lines().any(|line| line.strip_prefix(holder).is_some_and(|rest| rest.starts_with(['.', ' '])));
            ensure!(!depends || allowed.contains(&package) || package == "souk-tests", "{package} depends on {holder}");
        }
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn manifests(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["crates", "services"] {
        for entry in fs::read_dir(root.join(folder))? {
            found.push(entry?.path().join("Cargo.toml"));
        }
    }
    ensure!(found.len() > 10, "only {} packages", found.len());
    Ok(found)
}

/// Shipped Rust and SQL of all packages but the contracts.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = manifests(root)?.iter().map(|manifest| manifest.with_file_name("src")).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let test =
                ["tests", "tests.rs", "testing.rs", "model.rs", "conformance.rs"].contains(&name.as_str()) || name.ends_with("_tests.rs");
            if test {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "sql") {
                found.push(path);
            }
        }
    }
    ensure!(found.len() > 100, "only {} files", found.len());
    Ok(found)
}

/// Commerce in the names of a file, comments and tests left out.
fn commerce_words(text: &str) -> Vec<String> {
    let shipped = text.split_once("#[cfg(test)]").map_or(text, |(before, _)| before);
    let code = shipped
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .filter(|line| !line.trim_start().starts_with("--"));
    let names = code.flat_map(|line| line.split(|letter: char| !letter.is_alphanumeric() && letter != '_'));
    let known = names.filter(|name| CRATES.contains(name) || parts(name).iter().any(|part| WORDS.contains(&part.as_str())));
    known.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

/// `OrderId` and `order_id` → order, id.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter.is_uppercase() {
            parts.push(String::new());
        }
        if letter != '_' {
            parts.last_mut().expect("there is a first").extend(letter.to_lowercase());
        }
    }
    parts
}

#[test]
fn names_are_read_by_their_parts() {
    assert_eq!(commerce_words("fn reserve(id: ProductId, at: cart_position) {} // price\n"), ["ProductId", "cart_position"]);
    assert_eq!(commerce_words("// the price\nlet carton = 1;\n#[cfg(test)]\nlet price = 2;"), Vec::<String>::new());
}
