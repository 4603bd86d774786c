/// Which blocks of a run one slot holds: at least one, and not all.
pub(crate) struct Part {
    pub(crate) slot: u32,
    /// The blocks are so many from the first on, unless `bits` says otherwise.
    lead: u32,
    /// One bit per block, where some are held behind one that isn't.
    #[expect(
        clippy::box_collection,
        reason = "rare, and most runs are short: a pointer instead of three words"
    )]
    bits: Option<Box<Vec<u64>>>,
}

impl Part {
    /// The first blocks.
    pub(crate) fn leading(slot: u32, blocks: usize) -> Self {
        Self { slot, lead: blocks as u32, bits: None }
    }

    pub(crate) fn holds(&self, at: usize) -> bool {
        self.bits.as_ref().map_or(at < self.lead as usize, |bits| bit(bits, at))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bits.as_ref().map_or(self.lead == 0, |bits| bits.iter().all(|word| *word == 0))
    }

    /// Whether all of so many blocks are held.
    pub(crate) fn is_full(&self, len: usize) -> bool {
        self.row(0) >= len
    }

    /// The position after the last block that is held.
    pub(crate) fn end(&self) -> usize {
        let Some(bits) = &self.bits else { return self.lead as usize };
        let last = bits.iter().rposition(|word| *word != 0);
        last.map_or(0, |last| last * 64 + 64 - bits[last].leading_zeros() as usize)
    }

    /// How many blocks in a row are held from `at` on.
    pub(crate) fn row(&self, at: usize) -> usize {
        let lead = (self.lead as usize).saturating_sub(at);
        self.bits.as_ref().map_or(lead, |bits| ones_from(bits, at))
    }

    /// Adds the blocks `from..to`.
    pub(crate) fn insert(&mut self, from: usize, to: usize) {
        if self.bits.is_none() && from <= self.lead as usize {
            self.lead = self.lead.max(to as u32);
            return;
        }
        let bits = self.bits_mut();
        if bits.len() < to.div_ceil(64) {
            bits.resize(to.div_ceil(64), 0);
        }
        (from..to).for_each(|at| bits[at / 64] |= 1 << (at % 64));
        self.simplify();
    }

    /// Takes the blocks `from..to` out.
    pub(crate) fn remove(&mut self, from: usize, to: usize) {
        if self.bits.is_none() && to >= self.lead as usize {
            self.lead = self.lead.min(from as u32);
            return;
        }
        let bits = self.bits_mut();
        for at in from..to.min(bits.len() * 64) {
            bits[at / 64] &= !(1 << (at % 64));
        }
        self.simplify();
    }

    /// Cuts the blocks before `at` off and returns them.
    pub(crate) fn split(&mut self, at: usize) -> Self {
        let Some(bits) = &mut self.bits else {
            let front = Self::leading(self.slot, at.min(self.lead as usize));
            self.lead = self.lead.saturating_sub(at as u32);
            return front;
        };
        let mut front = Self { slot: self.slot, lead: 0, bits: Some(bits.clone()) };
        if let Some(front) = &mut front.bits {
            truncate_bits(front, at);
        }
        skip_bits(bits, at);
        front.simplify();
        self.simplify();
        front
    }

    fn bits_mut(&mut self) -> &mut Vec<u64> {
        let lead = std::mem::take(&mut self.lead) as usize;
        self.bits.get_or_insert_with(|| {
            let mut bits = vec![u64::MAX; lead.div_ceil(64)];
            truncate_bits(&mut bits, lead);
            Box::new(bits)
        })
    }

    /// Drops the bits if they say no more than a number would.
    fn simplify(&mut self) {
        let lead = self.row(0);
        if self.bits.is_some() && self.end() == lead {
            (self.lead, self.bits) = (lead as u32, None);
        }
    }
}

fn bit(bits: &[u64], at: usize) -> bool {
    bits.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
}

/// How many bits in a row are set from `at` on.
fn ones_from(bits: &[u64], at: usize) -> usize {
    let Some(first) = bits.get(at / 64) else { return 0 };
    let offset = at % 64;
    let mut count = (first >> offset).trailing_ones() as usize;
    if count < 64 - offset {
        return count;
    }
    for word in &bits[at / 64 + 1..] {
        count += word.trailing_ones() as usize;
        if *word != u64::MAX {
            break;
        }
    }
    count
}

/// Keeps the bits before `at`.
fn truncate_bits(bits: &mut Vec<u64>, at: usize) {
    bits.truncate(at.div_ceil(64));
    if let Some(last) = bits.get_mut(at / 64) {
        *last &= (1 << (at % 64)) - 1;
    }
}

/// Drops the bits before `at`.
fn skip_bits(bits: &mut Vec<u64>, at: usize) {
    bits.drain(..(at / 64).min(bits.len()));
    let shift = at % 64;
    if shift > 0 {
        for index in 0..bits.len() {
            let high = bits.get(index + 1).copied().unwrap_or(0);
            bits[index] = (bits[index] >> shift) | (high << (64 - shift));
        }
    }
}
