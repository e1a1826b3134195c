//! What a data folder fixes for ever or remembers from start to start, and the settings file made from it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::cluster::random_hex;
use crate::options::RegionIdentity;
use crate::standby;

/// What cannot change while the data lives, and what is the same again unless the caller says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Installation {
    pub region: String,
    pub region_number: u16,
    pub partitions: u16,
    /// May grow; the partitions stay where they are.
    pub write_shards: u16,
    /// The same.
    pub read_shards: u16,
    /// Standbys of the database server. May change with every start.
    #[serde(default)]
    pub read_replicas: u16,
    /// Signs tokens; drawn once.
    pub token_key: String,
}

/// What the caller asks for; `None` takes what the data has, or the default for new data.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub region: Option<RegionIdentity>,
    pub partitions: Option<u16>,
    pub write_shards: Option<u16>,
    pub read_shards: Option<u16>,
    pub read_replicas: Option<u16>,
}

impl Installation {
    /// Reads what the folder fixes, or fixes it now.
    pub fn open(data: &Path, wanted: Wanted) -> Result<Self> {
        let file = data.join("installation.toml");
        if let Some(wanted) = wanted.read_replicas {
            ensure!(wanted <= standby::MOST, "{wanted} read replicas: want 0 to {}", standby::MOST);
        }
        if file.exists() {
            let text = fs::read_to_string(&file)?;
            let mut found: Self = toml::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
            found.agrees_with(&wanted, data)?;
            let before = found.clone();
            found.read_replicas = wanted.read_replicas.unwrap_or(found.read_replicas);
            found.write_shards = wanted.write_shards.unwrap_or(found.write_shards);
            found.read_shards = wanted.read_shards.unwrap_or(found.read_shards);
            found.check_shards()?;
            if found != before {
                write_secret(&file, &toml::to_string(&found)?)?;
            }
            return Ok(found);
        }
        let region = wanted.region.unwrap_or_else(|| RegionIdentity { name: "local".to_owned(), number: 1, token_key: None });
        let new = Self {
            region: region.name,
            region_number: region.number,
            partitions: wanted.partitions.unwrap_or(64),
            write_shards: wanted.write_shards.unwrap_or(1),
            read_shards: wanted.read_shards.unwrap_or(1),
            read_replicas: wanted.read_replicas.unwrap_or(0),
            token_key: region.token_key.map_or_else(random_hex, Ok)?,
        };
        new.check_shards()?;
        write_secret(&file, &toml::to_string(&new)?)?;
        Ok(new)
    }

    /// Forgets what the folder fixed.
    pub fn remove(data: &Path) -> Result<()> {
        for name in ["installation.toml", "souk.toml"] {
            match fs::remove_file(data.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {name}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_shards(&self) -> Result<()> {
        for (name, shards) in [("write", self.write_shards), ("read", self.read_shards)] {
            ensure!((1..=16).contains(&shards), "{shards} {name} shards: want 1 to 16");
        }
        Ok(())
    }

    /// Partitions stay as many, and databases may become more, never fewer: each holds its partitions for good.
    fn agrees_with(&self, wanted: &Wanted, data: &Path) -> Result<()> {
        self.is_region(wanted.region.as_ref(), data)?;
        let fewer = |found, wanted: Option<u16>| wanted.filter(|wanted| *wanted < found);
        let facts = [
            ("write shards", self.write_shards, fewer(self.write_shards, wanted.write_shards)),
            ("read shards", self.read_shards, fewer(self.read_shards, wanted.read_shards)),
            ("partitions", self.partitions, wanted.partitions.filter(|wanted| *wanted != self.partitions)),
        ];
        for (name, found, wanted) in facts {
            if let Some(wanted) = wanted {
                bail!("the data in {} has {found} {name}, not {wanted}; leave the flag out, or start empty with --fresh", data.display());
            }
        }
        Ok(())
    }

    /// Ids and keys rest on name and number; with another token key it would understand no token of the other regions.
    fn is_region(&self, wanted: Option<&RegionIdentity>, data: &Path) -> Result<()> {
        let Some(wanted) = wanted else { return Ok(()) };
        ensure!(
            (self.region.as_str(), self.region_number) == (wanted.name.as_str(), wanted.number),
            "the data in {} is that of region {} with number {}, not of {} with number {}: name the regions in the order of before, and new \
             ones behind them",
            data.display(),
            self.region,
            self.region_number,
            wanted.name,
            wanted.number
        );
        let same_key = wanted.token_key.as_ref().is_none_or(|key| *key == self.token_key);
        ensure!(same_key, "the data in {} signs tokens otherwise than the other regions", data.display());
        Ok(())
    }

    /// Names of the databases of one side in the placement table, with those in Postgres.
    pub fn databases(side: &str, shards: u16) -> Vec<(String, String)> {
        (1..=shards).map(|shard| (format!("{side}-{shard}"), format!("souk_{side}_{shard}"))).collect()
    }
}

/// Writes a file only its owner may read, whole or not at all.
pub(crate) fn write_secret(file: &Path, text: &str) -> Result<()> {
    let unfinished = file.with_extension("unfinished");
    let write = || {
        let mut new = File::options().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&unfinished, file)
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// Sets a dotted key, creating the tables on the way: `set(table, "grpc.default_deadline", "5s")`.
///
/// # Panics
/// If a part of the way is a value and no table.
pub(crate) fn set(table: &mut Table, key: &str, value: impl Into<Value>) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value.into());
        }
        Some((head, rest)) => {
            let inner = table.entry(head).or_insert_with(|| Value::Table(Table::new()));
            set(inner.as_table_mut().expect("a section of the settings is a table"), rest, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::TemporaryFolder;

    #[test]
    fn what_an_installation_fixed_stays() {
        let folder = TemporaryFolder::create().unwrap();
        let first = Installation::open(folder.path(), Wanted { write_shards: Some(2), ..Wanted::default() }).unwrap();
        assert_eq!((first.partitions, first.write_shards, first.read_shards, first.token_key.len()), (64, 2, 1, 64));
        assert_eq!(Installation::open(folder.path(), Wanted::default()).unwrap(), first);
        let refused = |wanted| Installation::open(folder.path(), wanted).unwrap_err().to_string();
        let fewer = refused(Wanted { write_shards: Some(1), ..Wanted::default() });
        assert!(fewer.contains("has 2 write shards, not 1"), "{fewer}");
        let more = refused(Wanted { partitions: Some(128), ..Wanted::default() });
        assert!(more.contains("has 64 partitions, not 128"), "{more}");
    }

    #[test]
    fn data_stays_that_of_its_region() {
        let folder = TemporaryFolder::create().unwrap();
        let open = |name: &str, number, token_key: Option<&str>| {
            let region = Some(RegionIdentity { name: name.to_owned(), number, token_key: token_key.map(str::to_owned) });
            Installation::open(folder.path(), Wanted { region, ..Wanted::default() })
        };
        let first = open("us", 2, Some("c0ffee")).unwrap();
        assert_eq!((first.region.as_str(), first.region_number, first.token_key.as_str()), ("us", 2, "c0ffee"));
        assert_eq!(open("us", 2, None).unwrap(), first);
        assert!(open("us", 2, Some("other")).unwrap_err().to_string().contains("signs tokens otherwise"));
        let renumbered = open("us", 1, None).unwrap_err().to_string();
        assert!(renumbered.contains("region us with number 2, not of us with number 1"), "{renumbered}");
    }

    #[test]
    fn databases_may_become_more() {
        let folder = TemporaryFolder::create().unwrap();
        let shards = |write_shards, read_shards| {
            let wanted = Wanted { write_shards, read_shards, ..Wanted::default() };
            Installation::open(folder.path(), wanted).map(|found| (found.write_shards, found.read_shards))
        };
        let grown = [(None, None), (Some(2), None), (None, Some(4)), (Some(2), Some(4)), (None, None)];
        assert_eq!(grown.map(|(write, read)| shards(write, read).unwrap()), [(1, 1), (2, 1), (2, 4), (2, 4), (2, 4)]);
        assert!(shards(Some(17), None).is_err() && shards(None, Some(3)).is_err());
    }

    #[test]
    fn the_number_of_read_replicas_is_remembered_and_may_change() {
        let folder = TemporaryFolder::create().unwrap();
        for (wanted, found) in [(None, 0), (Some(2), 2), (None, 2), (Some(0), 0), (None, 0)] {
            let installation = Installation::open(folder.path(), Wanted { read_replicas: wanted, ..Wanted::default() }).unwrap();
            assert_eq!(installation.read_replicas, found, "after asking for {wanted:?}");
        }
        assert!(Installation::open(folder.path(), Wanted { read_replicas: Some(99), ..Wanted::default() }).is_err());
    }

    #[test]
    fn a_dotted_key_makes_its_sections() {
        let mut table = Table::new();
        set(&mut table, "saga.step_deadline", "5s");
        set(&mut table, "saga.batch_events", 7);
        assert_eq!(toml::to_string(&table).unwrap(), "[saga]\nbatch_events = 7\nstep_deadline = \"5s\"\n");
    }
}
