//! What one kind of engine's metrics page says.

use std::sync::Arc;
use std::time::Instant;

use warmroute_config::{EngineMetricsSpec, MetricSpec, RankSeries};
use warmroute_plugin::EndpointMetrics;

use super::exposition::{NameTable, Sample, unescaped};
use crate::delivered::PrefixCounters;
use crate::pool::{Adapters, Ranks, Scrape};

/// Data-parallel ranks of one page that are told apart; further ones count as none.
const MAX_RANKS: usize = 256;
/// Labels that tell data-parallel ranks apart: vLLM's and SGLang's.
const RANK_LABELS: [&str; 2] = ["engine", "dp_rank"];
/// Labels of the metric of LoRA adapters, as vLLM has them: two lists with commas, and the most that run together.
const RUNNING_ADAPTERS: &str = "running_lora_adapters";
const WAITING_ADAPTERS: &str = "waiting_lora_adapters";
const MAX_ADAPTERS: &str = "max_lora";

/// Reads the pages of one kind of engine.
#[derive(Debug)]
pub struct PageReader {
    engine: Arc<str>,
    names: NameTable,
    /// Per name: numbers of the metrics that have it.
    by_name: Vec<Vec<usize>>,
    metrics: Vec<Wanted>,
    ranks: RankSeries,
    cache_labels: (String, String),
    attribute_keys: Arc<[String]>,
}

/// A metric that is read.
#[derive(Debug)]
struct Wanted {
    meaning: Meaning,
    metric: MetricSpec,
}

/// What a metric is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Waiting,
    Running,
    KvUsage,
    Adapters,
    CacheInfo,
    BlockSize,
    NumBlocks,
    QueriedTokens,
    HitTokens,
    /// The attribute with this number.
    Attribute(usize),
}

impl Meaning {
    fn is_load(self) -> bool {
        matches!(self, Self::Waiting | Self::Running | Self::KvUsage)
    }

    /// Whether all series of the page count, added up.
    fn is_counter(self) -> bool {
        matches!(self, Self::QueriedTokens | Self::HitTokens)
    }

    /// Whether nothing is missed where it is missing.
    fn is_optional(self) -> bool {
        self == Self::Adapters || self.is_counter()
    }
}

/// What was read of a page.
#[derive(Debug)]
pub struct PageContent {
    /// With the values of the page before where this one lacks them.
    pub scrape: Scrape,
    /// Metrics that the page lacks, as the configuration writes them. LoRA adapters may be missing.
    pub missing: Vec<String>,
}

/// A page that says nothing of the engine's load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "read as one of engine {engine}, the page has no sample of {}: if it is another engine, label the endpoint or set \
     defaultEngine",
    missing.join(", ")
)]
pub struct NoLoad {
    /// The kind of engine.
    pub engine: Arc<str>,
    /// The metrics that there should be.
    pub missing: Vec<String>,
}

impl PageReader {
    /// A reader for one kind of engine. `attribute_keys` are those of all engines.
    pub fn new(spec: &EngineMetricsSpec, ranks: RankSeries, attribute_keys: &Arc<[String]>) -> Self {
        let metrics = [
            (Meaning::Waiting, &spec.queued_requests),
            (Meaning::Running, &spec.running_requests),
            (Meaning::KvUsage, &spec.kv_usage),
            (Meaning::Adapters, &spec.lora),
            (Meaning::CacheInfo, &spec.cache_info),
            (Meaning::BlockSize, &spec.cache_block_size),
            (Meaning::NumBlocks, &spec.cache_num_blocks),
        ];
        let metrics = metrics.into_iter().filter_map(|(meaning, metric)| Some((meaning, metric.as_ref()?)));
        let custom = spec.custom_metrics.iter().filter_map(|custom| {
            let at = attribute_keys.iter().position(|key| *key == custom.attribute_key)?;
            Some((Meaning::Attribute(at), &custom.metric))
        });
        let metrics =
            metrics.chain(custom).map(|(meaning, metric)| Wanted { meaning, metric: metric.clone() });
        let metrics: Vec<Wanted> = metrics.chain(prefix_counters(spec)).collect();
        let mut names: Vec<String> = Vec::new();
        let mut by_name: Vec<Vec<usize>> = Vec::new();
        for (at, wanted) in metrics.iter().enumerate() {
            match names.iter().position(|name| *name == wanted.metric.name) {
                Some(name) => by_name[name].push(at),
                None => {
                    names.push(wanted.metric.name.clone());
                    by_name.push(vec![at]);
                }
            }
        }
        Self {
            engine: spec.name.as_str().into(),
            names: NameTable::new(&names),
            by_name,
            metrics,
            ranks,
            cache_labels: (spec.cache_block_size_label.clone(), spec.cache_num_blocks_label.clone()),
            attribute_keys: attribute_keys.clone(),
        }
    }

    /// The kind of engine.
    pub fn engine(&self) -> &Arc<str> {
        &self.engine
    }

    /// Reads a page that arrived at `at`. What it lacks is taken from `previous`, if that is one of the same kind of
    /// engine, else 0 or nothing. Of several series of a metric the newest counts, the first one if they have no
    /// timestamps; those of data-parallel ranks are combined as configured. Of LoRA adapters the series with the
    /// highest value counts, since the value is a time.
    ///
    /// # Errors
    /// The page has none of the metrics that tell the engine's load, nor its description of the cache.
    pub fn read(&self, page: &str, at: Instant, previous: Option<&Scrape>) -> Result<PageContent, NoLoad> {
        self.read_ranks(page, at, previous, Ranks::default())
    }

    /// The same for the ranks behind an endpoint. Of one that shares its address, series of other ranks don't count,
    /// however those are configured to be combined; series that name no rank do.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_ranks(
        &self,
        page: &str,
        at: Instant,
        previous: Option<&Scrape>,
        ranks: Ranks,
    ) -> Result<PageContent, NoLoad> {
        let mut found: Vec<Series<'_>> = self.metrics.iter().map(|_| Series::default()).collect();
        let wanted_rank = ranks.sharing().map(|rank| rank.to_string());
        let is_another = |sample: &Sample<'_>| {
            let wanted = wanted_rank.as_deref();
            wanted.is_some_and(|wanted| rank_of(sample).is_some_and(|rank| rank != wanted))
        };
        for line in page.lines() {
            if let Some((name, sample)) = self.names.sample_of(line)
                && !is_another(&sample)
            {
                for &wanted in &self.by_name[name] {
                    self.take(&self.metrics[wanted], &mut found[wanted], sample);
                }
            }
        }
        let lacks = |(wanted, series): &(&Wanted, &Series<'_>)| {
            series.ranks.is_empty() && !wanted.meaning.is_optional()
        };
        let missing = self.metrics.iter().zip(&found).filter(lacks);
        let missing = missing.map(|(wanted, _)| wanted.metric.to_string()).collect();
        let mut load =
            self.metrics.iter().zip(&found).filter(|(wanted, _)| wanted.meaning.is_load()).peekable();
        let tells_load = load.peek().is_none() || load.any(|(_, series)| !series.ranks.is_empty());
        // Servers of several processes show a rank's load from its first request on, and its cache from the start. Taken
        // for unknown, a rank beside busy ones would score lowest and never get that request.
        let tells_cache = self
            .metrics
            .iter()
            .zip(&found)
            .any(|(wanted, series)| wanted.meaning == Meaning::CacheInfo && !series.ranks.is_empty());
        if !tells_load && !tells_cache {
            return Err(NoLoad { engine: self.engine.clone(), missing });
        }
        let previous = previous.filter(|previous| previous.engine == self.engine);
        let mut scrape = self.scrape(&found, at, previous);
        if let Ranks::Pinned { of, .. } = ranks
            && self.is_cache_size_told(&found)
        {
            // vLLM tells every rank's series the blocks of all (`vllm/v1/engine/core_client.py` adds them up).
            scrape.metrics.num_gpu_blocks /= u32::from(of).max(1);
        }
        Ok(PageContent { scrape, missing })
    }

    /// Whether this page tells the number of blocks.
    fn is_cache_size_told(&self, found: &[Series<'_>]) -> bool {
        let mut told = self.metrics.iter().zip(found).filter(|(_, series)| !series.ranks.is_empty());
        told.any(|(wanted, _)| matches!(wanted.meaning, Meaning::CacheInfo | Meaning::NumBlocks))
    }

    fn take<'a>(&self, wanted: &Wanted, series: &mut Series<'a>, sample: Sample<'a>) {
        let has = |(label, value): &(String, String)| sample.label(label) == Some(value);
        if !wanted.metric.labels.iter().all(has) {
            return;
        }
        let (rank, order) = match wanted.meaning {
            Meaning::Adapters => ("", sample.value),
            meaning if meaning.is_counter() => (sample.labels, sample.timestamp),
            meaning if meaning.is_load() && self.ranks == RankSeries::Combined => {
                (rank_of(&sample).unwrap_or_default(), sample.timestamp)
            }
            _ => ("", sample.timestamp),
        };
        series.take(rank, order, sample);
    }

    fn scrape(&self, found: &[Series<'_>], at: Instant, previous: Option<&Scrape>) -> Scrape {
        let mut metrics = previous.map(|previous| previous.metrics).unwrap_or_default();
        let mut attributes: Box<[Option<f64>]> = match previous {
            Some(previous) if previous.attributes.len() == self.attribute_keys.len() => {
                previous.attributes.clone()
            }
            _ => vec![None; self.attribute_keys.len()].into(),
        };
        let mut adapters = None;
        let (mut queried, mut hit) = (None, None);
        for (wanted, series) in self.metrics.iter().zip(found) {
            let Some(best) = series.ranks.first() else { continue };
            match wanted.meaning {
                Meaning::Waiting => metrics.waiting_requests = as_count(series.sum()),
                Meaning::Running => metrics.running_requests = as_count(series.sum()),
                Meaning::KvUsage => metrics.kv_cache_utilization = series.mean().clamp(0.0, 1.0),
                Meaning::BlockSize => metrics.block_size_tokens = as_count(best.sample.value),
                Meaning::NumBlocks => metrics.num_gpu_blocks = as_count(best.sample.value),
                Meaning::Attribute(at) => attributes[at] = Some(best.sample.value),
                Meaning::Adapters => adapters = Some(adapters_of(&best.sample, previous)),
                Meaning::CacheInfo => self.read_cache_info(&best.sample, &mut metrics),
                Meaning::QueriedTokens => queried = Some(series.sum() as u64),
                Meaning::HitTokens => hit = Some(series.sum() as u64),
            }
        }
        let counters = queried
            .zip(hit)
            .map(|(queried_tokens, hit_tokens)| PrefixCounters { queried_tokens, hit_tokens });
        Scrape {
            metrics,
            at,
            next_at: at,
            engine: self.engine.clone(),
            adapters,
            prefix_counters: counters,
            attribute_keys: self.attribute_keys.clone(),
            attributes,
        }
    }

    fn read_cache_info(&self, sample: &Sample<'_>, metrics: &mut EndpointMetrics) {
        let whole = |label: &str| sample.label(label).and_then(|value| value.parse().ok());
        metrics.block_size_tokens = whole(&self.cache_labels.0).unwrap_or(0);
        metrics.num_gpu_blocks = whole(&self.cache_labels.1).unwrap_or(0);
    }
}

/// The counters of the engine's prefix cache, of engines that are known to have them by how they name their metrics:
/// vLLM's (`vllm/v1/metrics/loggers.py`) and SGLang's (`python/sglang/srt/metrics/collector.py`).
fn prefix_counters(spec: &EngineMetricsSpec) -> impl Iterator<Item = Wanted> + use<> {
    let names = match spec.queued_requests.as_ref().and_then(|metric| metric.name.split_once(':')) {
        Some(("vllm", _)) => Some(["vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"]),
        Some(("sglang", _)) => Some(["sglang:prompt_tokens_total", "sglang:cached_tokens_total"]),
        _ => None,
    };
    let meanings = [Meaning::QueriedTokens, Meaning::HitTokens];
    let wanted =
        |(meaning, name): (Meaning, &str)| Some(Wanted { meaning, metric: MetricSpec::parse(name).ok()? });
    names.into_iter().flat_map(move |names| meanings.into_iter().zip(names)).filter_map(wanted)
}

/// The series of one metric that count: one per rank.
#[derive(Debug, Default)]
struct Series<'a> {
    ranks: Vec<Ranked<'a>>,
}

#[derive(Debug)]
struct Ranked<'a> {
    rank: &'a str,
    /// The highest one counts, of equal ones the first.
    order: f64,
    sample: Sample<'a>,
}

impl<'a> Series<'a> {
    fn take(&mut self, rank: &'a str, order: f64, sample: Sample<'a>) {
        match self.ranks.iter().position(|known| known.rank == rank) {
            Some(at) if order > self.ranks[at].order => self.ranks[at] = Ranked { rank, order, sample },
            Some(_) => {}
            None if self.ranks.len() < MAX_RANKS => self.ranks.push(Ranked { rank, order, sample }),
            None => {}
        }
    }

    fn sum(&self) -> f64 {
        self.ranks.iter().map(|ranked| ranked.sample.value).sum()
    }

    fn mean(&self) -> f64 {
        self.sum() / self.ranks.len().max(1) as f64
    }
}

/// The data-parallel rank that a sample names.
fn rank_of<'a>(sample: &Sample<'a>) -> Option<&'a str> {
    RANK_LABELS.iter().find_map(|label| sample.label(label))
}

/// The adapters that the labels name; those of `previous` if they are the same.
fn adapters_of(sample: &Sample<'_>, previous: Option<&Scrape>) -> Arc<Adapters> {
    let list = |label: &str| -> Box<[Box<str>]> {
        let value = unescaped(sample.label(label).unwrap_or_default());
        let mut names: Vec<Box<str>> =
            value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Box::from).collect();
        names.sort_unstable();
        names.dedup();
        names.into()
    };
    let max = sample.label(MAX_ADAPTERS).and_then(|max| max.trim().parse().ok()).unwrap_or(0);
    let adapters = Adapters { running: list(RUNNING_ADAPTERS), waiting: list(WAITING_ADAPTERS), max };
    match previous.and_then(|previous| previous.adapters.as_ref()) {
        Some(known) if **known == adapters => known.clone(),
        _ => Arc::new(adapters),
    }
}

fn as_count(value: f64) -> u32 {
    // Saturating by definition of `as`; negative values become 0.
    value as u32
}

#[cfg(test)]
mod tests;
