use smallvec::SmallVec;

use crate::run::Run;

/// Which blocks of a prompt are held somewhere: ranges `from..to` in ascending order that don't touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spans(SmallVec<[(u32, u32); 2]>);

impl Spans {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a range that begins where the last one ends, or later.
    pub(crate) fn push(&mut self, from: u32, to: u32) {
        match self.0.last_mut() {
            _ if from >= to => {}
            Some(last) if last.1 >= from => last.1 = last.1.max(to),
            _ => self.0.push((from, to)),
        }
    }

    /// Adds what a slot holds of the first `alike` blocks of a run, of which the first is the prompt's block `depth`.
    pub(crate) fn push_held(&mut self, run: &Run, slot: u32, depth: u32, alike: usize) {
        if run.full().contains(slot) {
            self.push(depth, depth + alike as u32);
            return;
        }
        let Some(part) = run.part(slot) else { return };
        let (mut at, end) = (0, part.end().min(alike));
        while at < end {
            let row = part.row(at).min(end - at);
            self.push(depth + at as u32, depth + (at + row) as u32);
            at += row.max(1);
        }
    }

    /// Adds all of another one.
    pub(crate) fn merge(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.extend_from_slice(&other.0);
            return;
        }
        let mut all = std::mem::take(&mut self.0);
        all.extend_from_slice(&other.0);
        all.sort_unstable();
        all.into_iter().for_each(|(from, to)| self.push(from, to));
    }

    /// How many blocks of `from..to` are in it.
    pub(crate) fn count_in(&self, from: u32, to: u32) -> u32 {
        self.0.iter().map(|(begin, end)| (*end).min(to).saturating_sub((*begin).max(from))).sum()
    }

    /// The end of the row of blocks that begins with block `from`; `from` if that one isn't in it.
    pub(crate) fn end_of_row(&self, from: u32) -> u32 {
        let row = self.0.iter().find(|(begin, end)| *begin <= from && from < *end);
        row.map_or(from, |(_, end)| *end)
    }

    /// The longest prefix of at most `limit` blocks whose last `window` blocks are in it, or all of its blocks if there
    /// are fewer; 0 if there is none.
    pub(crate) fn longest_prefix(&self, limit: u32, window: u32) -> u32 {
        let ends =
            self.0.iter().rev().filter(|(from, _)| *from < limit).map(|(from, to)| (*from, (*to).min(limit)));
        ends.filter(|(from, end)| *from == 0 || end - from >= window).map(|(_, end)| end).next().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Spans;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn of(held: &[bool]) -> Spans {
        let mut spans = Spans::default();
        (0..).zip(held).filter(|(_, held)| **held).for_each(|(at, _)| spans.push(at, at + 1));
        spans
    }

    proptest! {
        #[test]
        fn are_like_one_flag_per_block(
            blocks in vec((any::<bool>(), any::<bool>()), 0..20),
            from in 0..22_usize,
            to in 0..22_usize,
            window in 1..5_usize,
        ) {
            let (one, other): (Vec<bool>, Vec<bool>) = blocks.into_iter().unzip();
            let both: Vec<bool> = one.iter().zip(&other).map(|(one, other)| *one || *other).collect();
            let mut spans = of(&one);
            spans.merge(&of(&other));
            prop_assert_eq!(&spans, &of(&both));
            let is_held = |at: usize| both.get(at) == Some(&true);
            prop_assert_eq!(
                spans.count_in(from as u32, to as u32) as usize,
                (from..to).filter(|at| is_held(*at)).count()
            );
            prop_assert_eq!(
                spans.end_of_row(from as u32) as usize,
                from + (from..).take_while(|at| is_held(*at)).count()
            );
            let is_reusable = |end: &usize| (end.saturating_sub(window)..*end).all(is_held);
            prop_assert_eq!(
                spans.longest_prefix(to as u32, window as u32) as usize,
                (1..=to).rev().find(is_reusable).unwrap_or(0)
            );
        }
    }
}
