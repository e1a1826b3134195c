use std::hash::Hash;

use ahash::HashMap;

/// A map whose size is bounded by forgetting what was not used for a while: what is touched moves to the young generation,
/// and when that is full it becomes the old one, whose entries are dropped. Entries are dropped only by [`Self::age`], hence
/// never in the middle of a batch.
#[derive(Debug)]
pub(crate) struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Self { young: HashMap::default(), old: HashMap::default() }
    }
}

impl<K: Clone + Eq + Hash, V> Generations<K, V> {
    /// Whether `key` is here; if so it is young from now on.
    pub(crate) fn touch(&mut self, key: &K) -> bool {
        if self.young.contains_key(key) {
            return true;
        }
        let Some((key, value)) = self.old.remove_entry(key) else { return false };
        self.young.insert(key, value);
        true
    }

    /// The value of `key`, made by `fresh` if there is none.
    pub(crate) fn get_or_insert(&mut self, key: &K, fresh: impl FnOnce() -> Option<V>) -> Option<&mut V> {
        if !self.touch(key) {
            self.young.insert(key.clone(), fresh()?);
        }
        self.young.get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.touch(key);
        self.young.get_mut(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(&self.old)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| keep(key));
        self.old.retain(|key, _| keep(key));
    }

    /// Starts a new generation when the young one has `limit` entries, so that at most about twice as many are held.
    pub(crate) fn age(&mut self, limit: usize) {
        if self.young.len() >= limit {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let mut map = Generations::default();
        for round in 0..10 {
            assert_eq!(map.get_or_insert(&"used", || Some(0)).map(|value| std::mem::replace(value, round)), Some(i32::max(0, round - 1)));
            map.insert(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][round as usize], 0);
            map.age(2);
        }
        assert!(map.touch(&"used") && map.touch(&"j") && !map.touch(&"a") && !map.touch(&"h"));
        assert!(map.iter().count() <= 4);
    }
}
