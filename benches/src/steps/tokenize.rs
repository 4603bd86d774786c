//! Unseen text to block keys, on one core: ours against the `tokenizers` release that engines use today.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use tokenizers_0_23::Tokenizer;
use warmroute_inference_api::{Api, parse_request};
use warmroute_kv_index::{BlockKey, KeyExtras, block_keys};
use warmroute_tokenize::{ModelTokenizer, PromptOptions};

use super::parse::{chat_body, mb_per_s};
use crate::corpus::{Corpus, tokenizer_dir};
use crate::report::Report;
use crate::timing::{Comparison, Effort, Side, Spread, compare, cpu_ns_per_call, cpu_time_of};

/// A prompt's worth of text.
const PIECE_BYTES: usize = 2 * 1024;
const BLOCK_SIZE_TOKENS: u32 = 16;
const BAR: f64 = 20.0;
/// Pieces that encoders read before the whole corpus is measured.
const WARM_UP_PIECES: usize = 40;

/// Ids and keys of one piece of text.
type Keyed = (Vec<u32>, Vec<BlockKey>);

/// Ratio, rate and cost for each kind of text, then what a chat template costs.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let dir = tokenizer_dir();
    let ours = ModelTokenizer::load(&dir).context("run `make setup`, or set WARMROUTE_TOKENIZERS")?;
    let corpora =
        [Corpus::read("prose")?, Corpus::read("code")?, Corpus::read("chinese")?, Corpus::sources()?];
    whole_corpus(&dir, &corpora[..3], &corpora[3], effort, report)?;
    for corpus in &corpora {
        let name = corpus.name;
        let others: Vec<&Corpus> = corpora[..3].iter().filter(|other| other.name != name).collect();
        let (compared, tokens_per_byte) = Contest::load(&dir, &others)?.run(corpus, effort)?;
        report.figure(format!("tokenize/{name}_vs_hf"), compared.ratio, "ratio");
        report.figure(format!("tokenize/{name}"), mb_per_s(1, compared.ours), "MB/s");
        report.figure(format!("tokenize/{name}_hf"), mb_per_s(1, compared.baseline), "MB/s");
        let Spread { median, low, high } = compared.ours;
        let per_token = |ns_per_byte: f64| ns_per_byte / tokens_per_byte;
        let per_token = Spread { median: per_token(median), low: per_token(low), high: per_token(high) };
        report.figure(format!("tokenize/{name}_per_token"), per_token, "ns/token");
    }
    chat(&ours, effort, report)
}

/// The committed texts together: each once per measurement, by encoders that were loaded for it and have read nothing
/// of them. What they have read is some of the sources, so that neither pays for memory that it touches first.
fn whole_corpus(
    dir: &Path,
    corpora: &[Corpus],
    warm_up: &Corpus,
    effort: Effort,
    report: &mut Report,
) -> anyhow::Result<()> {
    let pieces: Vec<&str> = corpora.iter().flat_map(|corpus| corpus.pieces(PIECE_BYTES)).collect();
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    let warm_up = warm_up.pieces(PIECE_BYTES);
    let warm_up = &warm_up[..warm_up.len().min(WARM_UP_PIECES)];
    let mut other_side: Option<Vec<Keyed>> = None;
    let compared = compare(effort, |_, side| {
        let contest = Contest::load_after(dir, warm_up)?;
        let (time, keyed) = cpu_time_of(|| {
            pieces.iter().map(|piece| contest.path(side, piece)).collect::<anyhow::Result<Vec<_>>>()
        });
        let keyed = keyed?;
        match other_side.take() {
            Some(other) => ensure!(other == keyed, "ids or keys differ"),
            None => other_side = Some(keyed),
        }
        Ok(time.as_nanos() as f64 / bytes as f64)
    })?;
    report.with_bar("tokenize/corpus_vs_hf", compared.ratio, "ratio", BAR);
    report.figure("tokenize/corpus", mb_per_s(1, compared.ours), "MB/s");
    report.figure("tokenize/corpus_hf", mb_per_s(1, compared.baseline), "MB/s");
    Ok(())
}

/// Both sides, loaded anew.
struct Contest {
    ours: ModelTokenizer,
    baseline: Tokenizer,
}

impl Contest {
    /// Lets both sides read other texts first, so that neither pays for memory that it touches for the first time.
    fn load(dir: &Path, others: &[&Corpus]) -> anyhow::Result<Self> {
        let pieces: Vec<&str> = others.iter().flat_map(|other| other.pieces(PIECE_BYTES)).collect();
        Self::load_after(dir, &pieces)
    }

    fn load_after(dir: &Path, pieces: &[&str]) -> anyhow::Result<Self> {
        let baseline = Tokenizer::from_file(dir.join("tokenizer.json"))
            .map_err(|error| anyhow!("the baseline can't load: {error}"))?;
        let contest = Self { ours: ModelTokenizer::load(dir)?, baseline };
        for piece in pieces {
            ensure!(
                contest.path(Side::Ours, piece)? == contest.path(Side::Baseline, piece)?,
                "ids or keys differ"
            );
        }
        Ok(contest)
    }

    /// Costs in nanoseconds per byte, and tokens per byte.
    ///
    /// Every piece is encoded once by each side, so it is as unseen as a new prompt, while words that recur in the
    /// language may be in an encoder's cache as they would be in a process that has run for a while.
    fn run(&self, corpus: &Corpus, effort: Effort) -> anyhow::Result<(Comparison, f64)> {
        let pieces = corpus.pieces(PIECE_BYTES);
        let groups = effort.pairs + 1;
        ensure!(pieces.len() >= groups, "the {} corpus is too small for {} pairs", corpus.name, effort.pairs);
        let mut other_side: Option<Vec<Keyed>> = None;
        let mut tokens = 0;
        let compared = compare(effort, |pair, side| {
            let group: Vec<&str> = pieces.iter().skip(pair).step_by(groups).copied().collect();
            let (time, keyed) = cpu_time_of(|| {
                group.iter().map(|piece| self.path(side, piece)).collect::<anyhow::Result<_>>()
            });
            let keyed: Vec<Keyed> = keyed?;
            match other_side.take() {
                None => {
                    tokens += keyed.iter().map(|(ids, _)| ids.len()).sum::<usize>();
                    other_side = Some(keyed);
                }
                Some(other) => ensure!(keyed == other, "ids or keys differ in the {} corpus", corpus.name),
            }
            let bytes: usize = group.iter().map(|piece| piece.len()).sum();
            Ok(time.as_nanos() as f64 / bytes as f64)
        })?;
        Ok((compared, tokens as f64 / corpus.text().len() as f64))
    }

    fn path(&self, side: Side, text: &str) -> anyhow::Result<Keyed> {
        let mut ids = Vec::new();
        if side == Side::Ours {
            self.ours.encode(text, false, &mut ids)?;
        } else {
            // The fastest of its calls: without the place of each token in the text.
            let encoding = self.baseline.encode_fast(text, false);
            let encoding = encoding.map_err(|error| anyhow!("the baseline fails: {error}"))?;
            ids.extend_from_slice(encoding.get_ids());
        }
        let keys = keys_of(&ids);
        Ok((ids, keys))
    }
}

fn keys_of(ids: &[u32]) -> Vec<BlockKey> {
    let mut keys = Vec::new();
    block_keys(ids, BLOCK_SIZE_TOKENS, &KeyExtras::default(), &mut keys);
    keys
}

/// Rendering repeats one conversation, which is fair: no part of it is cached. Encoding does not repeat, see above.
fn chat(tokenizer: &ModelTokenizer, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let options = PromptOptions::default();
    for kb in [2, 32] {
        let body = chat_body(kb * 1024)?;
        let request = parse_request(Api::ChatCompletions, &body)?;
        let rendered = tokenizer.render_chat(&request, &options)?;
        if rendered.len() < kb * 1000 {
            bail!("the chat template left out most of the conversation");
        }
        let cost = cpu_ns_per_call(effort, || {
            let _ = black_box(tokenizer.render_chat(black_box(&request), &options));
        });
        let us = |ns: f64| ns / 1000.0;
        let cost = Spread { median: us(cost.median), low: us(cost.low), high: us(cost.high) };
        report.figure(format!("tokenize/chat_render_{kb}KB"), cost, "us/request");
    }
    Ok(())
}
