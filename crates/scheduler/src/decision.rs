//! What a decision was and what it was based on.

use std::sync::Arc;

use warmroute_plugin::{Candidates, InferenceRequest, Pick, PickHeaders};

use std::time::Duration;

use crate::scratch::Run;
use crate::{
    PluginTime, Profile, ProfileHandler, ProfileStep, ScheduleError, Scheduler, Scratch, Stage, Verdict,
};

/// A decision: where a request goes, and everything that a receipt says about why.
///
/// It borrows the [`Scratch`](crate::Scratch) and the table that it was made from. Two numberings of rows
/// occur: rows of the *table* that was given, and *kept* rows, those that the filters of a profile left.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    pub(crate) scheduler: &'a Scheduler,
    pub(crate) table: Candidates<'a>,
    pub(crate) scratch: &'a Scratch,
    pub(crate) primary: usize,
}

impl<'a> Decision<'a> {
    /// What the profile said that decides where the request goes.
    pub fn primary(&self) -> ProfileRun<'a> {
        self.run(self.primary)
    }

    /// What became of every stage of the handler's, in the order in which it goes through them.
    pub fn stages(&self) -> impl ExactSizeIterator<Item = StageRun<'a>> + use<'a> {
        let decision = *self;
        decision.scheduler.plan().iter().enumerate().map(move |(at, planned)| {
            let outcome = &decision.scratch.outcomes[at];
            let run = decision.run(at);
            StageRun {
                stage: planned.stage,
                decider: planned.decider.as_ref().map(|named| &named.name),
                verdict: outcome.verdict,
                failure: outcome.failure.map(|error| error.of(run.profile)),
                run,
            }
        })
    }

    /// The picks of the stages that help the primary one.
    pub fn helpers(&self) -> impl Iterator<Item = StageRun<'a>> + use<'a> {
        self.stages().filter(|stage| stage.stage != Stage::Primary && stage.has_picked())
    }

    /// Where the stages run, as the llm-d Router EPP calls it: `decode-only`, `prefill-decode`, `encode-decode` or
    /// `encode-prefill-decode`. `None` if the handler isn't about that.
    pub fn decision_type(&self) -> Option<&'static str> {
        if !matches!(self.scheduler.handler(), ProfileHandler::Disaggregated(_)) {
            return None;
        }
        let has = |wanted: Stage| self.helpers().any(|helper| helper.stage == wanted);
        Some(match (has(Stage::Encode), has(Stage::Prefill)) {
            (false, false) => "decode-only",
            (false, true) => "prefill-decode",
            (true, false) => "encode-decode",
            (true, true) => "encode-prefill-decode",
        })
    }

    /// The table that was given.
    pub fn table(&self) -> &Candidates<'a> {
        &self.table
    }

    /// The row of the table that the request goes to.
    pub fn table_row(&self) -> usize {
        self.table_rows().next().unwrap_or(0)
    }

    /// The rows of the table that were picked: the endpoint, then fallbacks.
    pub fn table_rows(&self) -> impl ExactSizeIterator<Item = usize> + use<'a> {
        table_rows(&self.scratch.runs[self.primary])
    }

    /// Tells the filters and scorers of every profile that ran, and collects the headers that they want. To be
    /// called once, when the request's charge is taken and it will really be sent.
    pub fn report_picked(&self, request: &InferenceRequest, headers: &mut PickHeaders) {
        for StageRun { stage, run, .. } in self.stages() {
            let Some(pick) = run.pick() else { continue };
            let pick = pick.primary(stage == Stage::Primary);
            for filter in &run.profile.filters {
                filter.filter.picked(request, &pick, headers);
            }
            for scorer in &run.profile.scorers {
                scorer.scorer.picked(request, &pick, headers);
            }
        }
    }

    fn run(&self, index: usize) -> ProfileRun<'a> {
        let (run, outcome) = (&self.scratch.runs[index], &self.scratch.outcomes[index]);
        let profile = &self.scheduler.profiles()[outcome.profile];
        ProfileRun { profile, table: run.with_peer(&self.table), run }
    }
}

fn table_rows<'a>(run: &'a Run) -> impl ExactSizeIterator<Item = usize> + use<'a> {
    run.order.iter().map(|&row| run.rows[row as usize] as usize)
}

/// What became of one stage of the handler's.
#[derive(Clone, Debug)]
pub struct StageRun<'a> {
    /// What its pick is for.
    pub stage: Stage,
    /// The decider that said whether it runs; `None` if it always does.
    pub decider: Option<&'a Arc<str>>,
    /// What that one said.
    pub verdict: Option<Verdict>,
    /// Why it ran and picked nothing, and the request is served nevertheless.
    pub failure: Option<ScheduleError>,
    /// What its profile said; without rows if it didn't run.
    pub run: ProfileRun<'a>,
}

impl StageRun<'_> {
    /// Whether it ran and picked an endpoint.
    pub fn has_picked(&self) -> bool {
        !self.run.order().is_empty()
    }
}

/// What one profile said about one request.
#[derive(Clone, Copy, Debug)]
pub struct ProfileRun<'a> {
    profile: &'a Profile,
    table: Candidates<'a>,
    run: &'a Run,
}

impl<'a> ProfileRun<'a> {
    /// The profile's name.
    pub fn name(&self) -> &'a Arc<str> {
        &self.profile.name
    }

    /// The name of the picker.
    pub fn picker(&self) -> &'a Arc<str> {
        &self.profile.picker.name
    }

    /// The rows of the table that the filters kept. A kept row is a number into this slice.
    pub fn kept(&self) -> &'a [u32] {
        &self.run.rows
    }

    /// The kept rows with their signals, as the scorers saw them.
    pub fn candidates(&self) -> Candidates<'a> {
        self.run.candidates(&self.table)
    }

    /// The rows of the table that were taken out, each with the name of the filter.
    pub fn filtered(&self) -> impl Iterator<Item = (usize, &'a Arc<str>)> + use<'a> {
        let filters = &self.profile.filters;
        let removed_by = self.run.removed_by.iter().enumerate();
        removed_by.filter_map(move |(row, filter)| Some((row, &filters[(*filter)? as usize].name)))
    }

    /// The scorers in their order, with what they said of every kept row.
    pub fn scorers(&self) -> impl ExactSizeIterator<Item = ScorerScores<'a>> + use<'a> {
        let run = self.run;
        let kept = run.rows.len();
        self.profile.scorers.iter().enumerate().map(move |(index, scorer)| ScorerScores {
            name: &scorer.name,
            weight: scorer.weight,
            scores: run.scores.get(index * kept..(index + 1) * kept).unwrap_or(&[]),
            // A run that ended early has none.
            not_a_number: run.not_a_number.get(index).copied().unwrap_or(0),
        })
    }

    /// Per kept row: the sum of the weighted scores.
    pub fn totals(&self) -> &'a [f64] {
        &self.run.totals
    }

    /// The rows of the table that were picked: the endpoint, then fallbacks.
    pub fn table_rows(&self) -> impl ExactSizeIterator<Item = usize> + use<'a> {
        table_rows(self.run)
    }

    /// The picked kept rows, best first: the endpoint, then fallbacks.
    pub fn order(&self) -> &'a [u32] {
        &self.run.order
    }

    /// The best kept row that isn't where the request goes: the first one by total. `None` if only one
    /// row was kept.
    pub fn runner_up(&self) -> Option<usize> {
        let first = *self.run.order.first()? as usize;
        let others = (0..self.run.totals.len()).rev().filter(|&row| row != first);
        others.max_by(|&a, &b| self.run.totals[a].total_cmp(&self.run.totals[b]))
    }

    /// How many of the picker's rows were passed over, since they don't exist or came twice. Not 0 is a
    /// mistake of the picker.
    pub fn invalid_picks(&self) -> u32 {
        self.run.invalid_picks
    }

    /// When the run began, by the clock of the [`Scratch`](crate::Scratch). `None` if it has none.
    pub fn started(&self) -> Option<Duration> {
        self.run.marks.first().copied()
    }

    /// How long each plugin took, one after the other. Empty without a clock.
    pub fn plugin_times(&self) -> impl Iterator<Item = PluginTime<'a>> + use<'a> {
        let profile = self.profile;
        let filters = profile.filters.iter().map(|filter| (ProfileStep::Filter, &filter.name));
        let scorers = profile.scorers.iter().map(|scorer| (ProfileStep::Scorer, &scorer.name));
        let plugins = filters.chain(scorers).chain([(ProfileStep::Picker, &profile.picker.name)]);
        let times = self.run.marks.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        plugins.zip(times).map(|((step, name), took)| PluginTime { step, name, took })
    }

    /// The pick as scorers learn it.
    pub fn pick(&self) -> Option<Pick<'a>> {
        Pick::try_new(&self.profile.name, self.candidates(), &self.run.order)
    }
}

/// What one scorer said of every kept row.
#[derive(Clone, Copy, Debug)]
pub struct ScorerScores<'a> {
    /// The scorer's name.
    pub name: &'a Arc<str>,
    /// Its weight in the profile.
    pub weight: f64,
    /// Its score per kept row, clamped to 0 to 1.
    pub scores: &'a [f64],
    /// For how many rows it said NaN, which counts as 0. Not 0 is a mistake of the scorer.
    pub not_a_number: u32,
}

impl ScorerScores<'_> {
    /// What the scorer adds to the total of a kept row.
    pub fn weighted(&self, kept_row: usize) -> f64 {
        self.scores[kept_row] * self.weight
    }
}
