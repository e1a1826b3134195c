use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{LogId, MintedId, Partition, Region, partition_of, routing_hash};

/// Longest id a caller may choose, its home included.
const MAX_KEY_CHARS: usize = 64;

/// Which regions there are, how they reach each other, and where entities are at home. One document for all regions;
/// whoever holds one holds a valid one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct Topology(Document);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    regions: Vec<Site>,
    homes: Vec<Region>,
}

/// One region, as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Stored in every key.
    pub number: Region,
    /// What ids name their home by.
    pub name: String,
    /// Internal port of its command service: a url, or several separated by commas.
    pub command_internal: String,
}

/// What decides where an entity lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingKey<'a> {
    /// An id of a caller's choice, which may begin with the name of its home and a dot: `eu.c-123`.
    Chosen(&'a str),
    /// An id that carries region and routing hash.
    Minted(MintedId),
}

/// Text that is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("want 1–64 letters, digits, '-' or '_', beginning with a letter or digit; the name of a region and a dot may stand before them")]
pub struct InvalidKey;

/// An id names a home that the topology does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("want the name of a region before the dot; there is no region '{0}'")]
pub struct UnknownRegion(pub String);

/// What is wrong with a topology, or with changing to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopology {
    #[error("version 0 stands for no document; want 1 or more")]
    NoVersion,
    #[error("region {0} is there twice, by its number or its name")]
    Twice(String),
    #[error("region number 0 is not used")]
    NoNumber,
    #[error("'{0}' is no name of a region: want a lower-case letter, then lower-case letters, digits or '-', at most 32")]
    Name(String),
    #[error("region '{0}' has no internal endpoint of its command service; want http://host:port")]
    Endpoint(String),
    #[error("want a home for each of 1 to 4096 partitions, not {0}")]
    Homes(usize),
    #[error("partition {partition} is at home in region {region}, which is not in the document")]
    UnknownHome { partition: usize, region: Region },
    #[error("version {stored} is in force; want {} next, not {offered}", .stored + 1)]
    Version { stored: u64, offered: u64 },
    #[error("region {0} is in force and may neither leave nor change its name")]
    Leaves(Region),
    #[error("there are {stored} partitions for ever, not {offered}")]
    Partitions { stored: usize, offered: usize },
    #[error("the home of partition {0} is settled: entities live there by their ids")]
    Home(usize),
}

impl Topology {
    /// A document, if it is one.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn new(version: u64, regions: Vec<Site>, homes: Vec<Region>) -> Result<Self, InvalidTopology> {
        Document { version, regions, homes }.try_into()
    }

    /// What holds before there is a document: one region, home of everything. Its version is 0.
    pub fn alone(number: Region, name: &str, partitions: u16) -> Self {
        let site = Site { number, name: name.to_owned(), command_internal: String::new() };
        Self(Document { version: 0, regions: vec![site], homes: vec![number; usize::from(partitions)] })
    }

    /// Whether this may follow after `stored`. Regions are added and their endpoints change; what ids rest on stays: names,
    /// numbers, the count of partitions and, once there is a document, their homes. Before there is one, `stored` is home of
    /// everything, and a partition may be given away as long as `is_empty` there.
    ///
    /// # Errors
    /// The first thing that speaks against it.
    pub fn may_follow(&self, stored: &Self, is_empty: impl Fn(Partition) -> bool) -> Result<(), InvalidTopology> {
        let (old, new) = (&stored.0, &self.0);
        // A region that joins others takes their document as it is by then.
        let joins = old.version == 0 && new.regions.len() > 1;
        if new.version != old.version + 1 && !joins {
            return Err(InvalidTopology::Version { stored: old.version, offered: new.version });
        }
        // The label of a lone region is no name that ids could have been given yet.
        let stays = |site: &&Site| self.site(site.number).is_some_and(|now| old.version == 0 || now.name == site.name);
        if let Some(site) = old.regions.iter().find(|site| !stays(site)) {
            return Err(InvalidTopology::Leaves(site.number));
        }
        if new.homes.len() != old.homes.len() {
            return Err(InvalidTopology::Partitions { stored: old.homes.len(), offered: new.homes.len() });
        }
        let settled = |partition: usize| old.version > 0 || !is_empty(Partition(partition as u16));
        match (0..new.homes.len()).find(|partition| new.homes[*partition] != old.homes[*partition] && settled(*partition)) {
            Some(partition) => Err(InvalidTopology::Home(partition)),
            None => Ok(()),
        }
    }

    /// Whether ids lead to the same logs by both; endpoints may differ.
    pub fn routes_as(&self, other: &Self) -> bool {
        let names = |topology: &Self| topology.0.regions.iter().map(|site| (site.number, site.name.clone())).collect::<BTreeSet<_>>();
        self.0.homes == other.0.homes && names(self) == names(other)
    }

    /// 0 when nobody has stored one.
    pub const fn version(&self) -> u64 {
        self.0.version
    }

    pub fn sites(&self) -> &[Site] {
        &self.0.regions
    }

    pub fn site(&self, number: Region) -> Option<&Site> {
        self.0.regions.iter().find(|site| site.number == number)
    }

    /// Numbers of all regions.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        self.0.regions.iter().map(|site| site.number)
    }

    /// The home of each partition's entities whose ids do not name one.
    pub fn homes(&self) -> &[Region] {
        &self.0.homes
    }

    /// Partitions of every region.
    pub fn partitions(&self) -> u16 {
        self.0.homes.len() as u16
    }

    /// The log an entity is written to: the one place that says so.
    ///
    /// # Errors
    /// When the id names a region that is not there.
    pub fn home(&self, key: RoutingKey<'_>) -> Result<LogId, UnknownRegion> {
        let partition = partition_of(key.hash(), self.partitions());
        match key {
            RoutingKey::Minted(id) => Ok(LogId { region: id.region(), partition }),
            RoutingKey::Chosen(text) => {
                let Some((name, _)) = text.split_once('.') else {
                    return Ok(LogId { region: self.0.homes[usize::from(partition.0)], partition });
                };
                let site = self.0.regions.iter().find(|site| site.name == name).ok_or_else(|| UnknownRegion(name.to_owned()))?;
                Ok(LogId { region: site.number, partition })
            }
        }
    }
}

impl<'a> RoutingKey<'a> {
    /// Decides the partition.
    pub fn hash(self) -> u32 {
        match self {
            Self::Chosen(text) => routing_hash(text),
            Self::Minted(id) => id.routing_hash(),
        }
    }

    /// An id of a caller's choice.
    ///
    /// # Errors
    /// Anything but `([a-z][a-z0-9-]*\.)?[A-Za-z0-9][A-Za-z0-9_-]*` of at most 64 characters.
    pub fn chosen(text: &'a str) -> Result<Self, InvalidKey> {
        let (home, rest) = text.split_once('.').map_or((None, text), |(home, rest)| (Some(home), rest));
        let begins_well = rest.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let plain = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        let fine = begins_well && plain && home.is_none_or(is_name) && text.len() <= MAX_KEY_CHARS;
        if fine { Ok(Self::Chosen(text)) } else { Err(InvalidKey) }
    }
}

impl TryFrom<Document> for Topology {
    type Error = InvalidTopology;

    fn try_from(document: Document) -> Result<Self, InvalidTopology> {
        if document.version == 0 {
            return Err(InvalidTopology::NoVersion);
        }
        let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
        for site in &document.regions {
            if site.number == Region(0) {
                return Err(InvalidTopology::NoNumber);
            }
            if !is_name(&site.name) {
                return Err(InvalidTopology::Name(site.name.clone()));
            }
            if !numbers.insert(site.number) || !names.insert(&site.name) {
                return Err(InvalidTopology::Twice(site.name.clone()));
            }
            if !site.command_internal.split(',').all(is_url) {
                return Err(InvalidTopology::Endpoint(site.name.clone()));
            }
        }
        if !(1..=4096).contains(&document.homes.len()) {
            return Err(InvalidTopology::Homes(document.homes.len()));
        }
        if let Some((partition, region)) = document.homes.iter().enumerate().find(|(_, region)| !numbers.contains(region)) {
            return Err(InvalidTopology::UnknownHome { partition, region: *region });
        }
        Ok(Self(document))
    }
}

impl From<Topology> for Document {
    fn from(topology: Topology) -> Self {
        topology.0
    }
}

fn is_name(text: &str) -> bool {
    let begins_well = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    begins_well && text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_url(text: &str) -> bool {
    let rest = ["http://", "https://"].iter().find_map(|scheme| text.trim().strip_prefix(scheme));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;

    fn site(number: u16, name: &str) -> Site {
        Site { number: Region(number), name: name.to_owned(), command_internal: format!("http://{name}:50061") }
    }

    fn two(version: u64, homes: [u16; 4]) -> Result<Topology, InvalidTopology> {
        Topology::new(version, vec![site(1, "eu"), site(2, "us")], homes.map(Region).to_vec())
    }

    #[test]
    fn an_id_is_at_home_where_it_says_else_where_its_partition_is() {
        let topology = two(1, [1, 2, 1, 2]).unwrap();
        for id in ["c-1", "c-2", "p-1", "x"] {
            let log = topology.home(RoutingKey::Chosen(id)).unwrap();
            assert_eq!(log.partition, partition_of(routing_hash(id), 4));
            assert_eq!(log.region, topology.homes()[usize::from(log.partition.0)]);
            for (name, number) in [("eu", 1), ("us", 2)] {
                let id = format!("{name}.{id}");
                let log = topology.home(RoutingKey::Chosen(&id)).unwrap();
                assert_eq!((log.region, log.partition), (Region(number), partition_of(routing_hash(&id), 4)));
            }
        }
        assert_eq!(topology.home(RoutingKey::Chosen("ap.c-1")), Err(UnknownRegion("ap".into())));
        let request: RequestId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let order = MintedId::mint(request, "order", routing_hash("us.c-1"), Region(2));
        assert_eq!(topology.home(RoutingKey::Minted(order)), topology.home(RoutingKey::Chosen("us.c-1")));
    }

    #[test]
    fn alone_everything_is_at_home() {
        let topology = Topology::alone(Region(7), "local", 64);
        assert_eq!((topology.version(), topology.partitions()), (0, 64));
        assert!(["c-1", "local.c-1"].iter().all(|id| topology.home(RoutingKey::Chosen(id)).unwrap().region == Region(7)));
    }

    #[test]
    fn ids_of_callers_are_plain_behind_the_name_of_a_region() {
        for good in ["a", "0", "p-1", "A_b-c", "eu.c-1", "eu-2.0", &"x".repeat(64)] {
            assert_eq!(RoutingKey::chosen(good), Ok(RoutingKey::Chosen(good)), "{good}");
        }
        for bad in ["", "-a", "_a", ".a", "a.", "a.-b", "A.b", "2.b", "a.b.c", "a b", "ä", "a\0", "a/b", &"x".repeat(65)] {
            assert_eq!(RoutingKey::chosen(bad), Err(InvalidKey), "{bad:?}");
        }
    }

    #[test]
    fn a_document_is_checked_whole() {
        assert_eq!(two(0, [1; 4]), Err(InvalidTopology::NoVersion));
        assert_eq!(two(1, [1, 1, 3, 1]), Err(InvalidTopology::UnknownHome { partition: 2, region: Region(3) }));
        let homes = || vec![Region(1)];
        let of = |sites| Topology::new(1, sites, homes());
        assert_eq!(of(vec![site(1, "eu"), site(1, "us")]), Err(InvalidTopology::Twice("us".into())));
        assert_eq!(of(vec![site(1, "eu"), site(2, "eu")]), Err(InvalidTopology::Twice("eu".into())));
        assert_eq!(of(vec![site(0, "eu")]), Err(InvalidTopology::NoNumber));
        for name in ["", "EU", "e.u", "1eu", "-eu"] {
            assert_eq!(of(vec![site(1, name)]), Err(InvalidTopology::Name(name.into())));
        }
        assert_eq!(of(vec![Site { command_internal: "eu:50061".into(), ..site(1, "eu") }]), Err(InvalidTopology::Endpoint("eu".into())));
        assert_eq!(Topology::new(1, vec![site(1, "eu")], vec![]), Err(InvalidTopology::Homes(0)));
    }

    #[test]
    fn what_ids_rest_on_stays() {
        let (alone, first) = (Topology::alone(Region(1), "local", 4), two(1, [1, 1, 2, 1]).unwrap());
        assert_eq!(first.may_follow(&alone, |_| true), Ok(()));
        assert_eq!(first.may_follow(&alone, |partition| partition != Partition(2)), Err(InvalidTopology::Home(2)));
        assert_eq!(two(7, [1, 1, 2, 1]).unwrap().may_follow(&alone, |_| true), Ok(()), "it joins others that are further");
        let moved = two(2, [1, 1, 2, 2]).unwrap();
        assert_eq!(moved.may_follow(&first, |_| true), Err(InvalidTopology::Home(3)), "others may hold what is empty here");
        assert_eq!(two(3, [1, 1, 2, 1]).unwrap().may_follow(&first, |_| true), Err(InvalidTopology::Version { stored: 1, offered: 3 }));
        let of = |sites| Topology::new(2, sites, first.homes().to_vec()).unwrap();
        assert_eq!(of(vec![site(1, "eu"), site(2, "us"), site(3, "ap")]).may_follow(&first, |_| true), Ok(()));
        assert_eq!(of(vec![site(1, "eu"), site(2, "usa")]).may_follow(&first, |_| true), Err(InvalidTopology::Leaves(Region(2))));
        let elsewhere = Topology::new(1, vec![site(2, "us")], vec![Region(2); 4]).unwrap();
        assert_eq!(elsewhere.may_follow(&alone, |_| true), Err(InvalidTopology::Leaves(Region(1))));
        let fewer = Topology::new(1, vec![site(1, "eu")], vec![Region(1); 2]).unwrap();
        assert_eq!(fewer.may_follow(&alone, |_| true), Err(InvalidTopology::Partitions { stored: 4, offered: 2 }));
    }
}
