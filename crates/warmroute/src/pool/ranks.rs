//! Which data-parallel ranks of an engine stand behind an endpoint.

/// The data-parallel ranks behind an endpoint, and how a request gets to one of them.
///
/// A rank has a KV cache and a publisher of KV events of its own, so it is an engine. Where requests can be sent to a rank,
/// it is an endpoint too, even if it shares its address with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ranks {
    /// One rank, which has the address to itself; 0 for an engine without data parallelism.
    Own {
        /// Its number, by which its event ports are offset.
        rank: u16,
    },
    /// One of several ranks behind one address. A request header says which one is meant.
    Pinned {
        /// Its number.
        rank: u16,
        /// What the header says: the rank's place among those of this address, which is what vLLM counts
        /// (`vllm/v1/engine/input_processor.py`: with local engines only, the local ones).
        header: u16,
        /// How many ranks the address has.
        of: u16,
    },
    /// Several ranks behind one address, of which the engine chooses one for each request.
    Unpinned {
        /// The lowest number; the others follow.
        first: u16,
        /// How many there are, at least 2.
        of: u16,
    },
}

impl Default for Ranks {
    fn default() -> Self {
        Self::Own { rank: 0 }
    }
}

impl Ranks {
    /// The number of the first rank behind the endpoint.
    pub fn first(self) -> u16 {
        match self {
            Self::Own { rank } | Self::Pinned { rank, .. } => rank,
            Self::Unpinned { first, .. } => first,
        }
    }

    /// How many ranks a request to the endpoint may come to.
    pub fn count(self) -> u16 {
        match self {
            Self::Own { .. } | Self::Pinned { .. } => 1,
            Self::Unpinned { of, .. } => of.max(1),
        }
    }

    /// The value of the header by which a request is pinned; None if it needs none.
    pub fn header(self) -> Option<u16> {
        match self {
            Self::Pinned { header, .. } => Some(header),
            Self::Own { .. } | Self::Unpinned { .. } => None,
        }
    }

    /// The rank, of one that shares its address.
    pub fn sharing(self) -> Option<u16> {
        match self {
            Self::Pinned { rank, .. } => Some(rank),
            Self::Own { .. } | Self::Unpinned { .. } => None,
        }
    }
}

/// What a list of endpoints says of the ranks behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataParallel {
    /// Ranks behind the address; None if the engine is to say it.
    pub size: Option<u16>,
    /// The rank that has the address to itself; counts before `size`.
    pub rank: Option<u16>,
    /// Whether requests may be pinned to a rank by a header.
    pub pinning: bool,
}

impl Default for DataParallel {
    fn default() -> Self {
        Self { size: None, rank: None, pinning: true }
    }
}

impl DataParallel {
    /// The ranks that get an endpoint each. `told` are those that the engine lists, in order; empty if it lists none.
    pub fn ranks(self, told: &[u16]) -> Vec<Ranks> {
        if let Some(rank) = self.rank {
            return vec![Ranks::Own { rank }];
        }
        let given: Vec<u16> = self.size.map_or_else(|| told.to_vec(), |size| (0..size).collect());
        let of = given.len() as u16;
        match given.first() {
            Some(_) if of > 1 && self.pinning => {
                let pinned = |(header, rank): (u16, &u16)| Ranks::Pinned { rank: *rank, header, of };
                (0..).zip(&given).map(pinned).collect()
            }
            Some(first) if of > 1 => vec![Ranks::Unpinned { first: *first, of }],
            _ => vec![Ranks::default()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_counts_before_what_the_engine_lists() {
        let of = |size, rank, pinning, told: &[u16]| DataParallel { size, rank, pinning }.ranks(told);
        assert_eq!(of(None, None, true, &[]), [Ranks::default()]);
        assert_eq!(of(None, None, true, &[3]), [Ranks::default()], "one rank needs no header");
        let pinned = |rank, header| Ranks::Pinned { rank, header, of: 2 };
        assert_eq!(of(None, None, true, &[0, 1]), [pinned(0, 0), pinned(1, 1)]);
        assert_eq!(
            of(None, None, true, &[4, 5]),
            [pinned(4, 0), pinned(5, 1)],
            "the header counts the local ones"
        );
        assert_eq!(of(None, None, false, &[4, 5]), [Ranks::Unpinned { first: 4, of: 2 }]);
        assert_eq!(of(Some(2), None, true, &[0, 1, 2]), [pinned(0, 0), pinned(1, 1)]);
        assert_eq!(of(Some(1), None, true, &[0, 1]), [Ranks::default()]);
        assert_eq!(of(Some(2), Some(7), true, &[0, 1]), [Ranks::Own { rank: 7 }]);
    }
}
