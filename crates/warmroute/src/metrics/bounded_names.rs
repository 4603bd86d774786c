use std::collections::HashSet;

use parking_lot::RwLock;

/// What names over a bound are counted as.
pub(super) const OTHER: &str = "other";

/// Longest name that becomes a label value, in bytes.
const LONGEST_BYTES: usize = 256;

/// Names that clients make up, as label values: the first ones as they are, later and very long ones as `other`.
#[derive(Debug)]
pub(super) struct BoundedNames {
    limit: usize,
    known: RwLock<HashSet<Box<str>>>,
}

impl BoundedNames {
    /// Takes the first `limit` names as they are.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, known: RwLock::default() }
    }

    /// The label value for a name.
    pub(super) fn label<'a>(&self, name: &'a str) -> &'a str {
        if name.len() > LONGEST_BYTES {
            return OTHER;
        }
        {
            let known = self.known.read();
            if known.contains(name) {
                return name;
            }
            if known.len() >= self.limit {
                return OTHER;
            }
        }
        let mut known = self.known.write();
        if !known.contains(name) {
            if known.len() >= self.limit {
                return OTHER;
            }
            known.insert(name.into());
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_stay_and_later_ones_become_other() {
        let names = BoundedNames::new(3);
        for name in ["a", "b", "a", "c"] {
            assert_eq!(names.label(name), name);
        }
        assert_eq!(names.label("d"), OTHER);
        assert_eq!(names.label("b"), "b");
        assert_eq!(names.label(&"x".repeat(LONGEST_BYTES + 1)), OTHER);
    }
}
