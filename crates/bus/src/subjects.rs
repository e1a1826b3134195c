use souk_event_sourcing::{LogId, Region};

/// Names on the bus; all begin with the installation's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// Name of a log's JetStream stream.
    pub fn stream(&self, log: LogId) -> String {
        format!("{}-{}-{}", self.prefix, log.region, log.partition)
    }

    /// The one subject of a log's JetStream stream.
    pub fn log(&self, log: LogId) -> String {
        format!("{}.log.{}.{}", self.prefix, log.region, log.partition)
    }

    pub fn head(&self, log: LogId) -> String {
        format!("{}.head.{}.{}", self.prefix, log.region, log.partition)
    }

    pub fn heads(&self, region: Region) -> String {
        format!("{}.head.{region}.*", self.prefix)
    }

    pub fn feed(&self, log: LogId) -> String {
        format!("{}.feed.{}.{}", self.prefix, log.region, log.partition)
    }

    pub fn feeds(&self, region: Region) -> String {
        format!("{}.feed.{region}.*", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::Partition;

    use super::*;

    #[test]
    fn names_are_pinned() {
        let (subjects, log) = (Subjects::new("souk"), LogId { region: Region(1), partition: Partition(7) });
        let names = [
            subjects.stream(log),
            subjects.log(log),
            subjects.head(log),
            subjects.heads(log.region),
            subjects.feed(log),
            subjects.feeds(log.region),
        ];
        assert_eq!(names, ["souk-1-7", "souk.log.1.7", "souk.head.1.7", "souk.head.1.*", "souk.feed.1.7", "souk.feed.1.*"]);
    }
}
