//! `warmroute check`: what serving would say to a configuration, and what it can't know: weights that can't
//! matter, scorers that can only tie, prefix matches without tokens.

use std::fmt::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use warmroute_config::{
    CheckedConfig, ConfigError, Notice, PluginRef, PluginSpec, PrefixProducerSpec, ProfileSpec, TokenBackend,
    check,
};
use warmroute_plugin::{BuildContext, Needs, PluginKind, Registry};
use warmroute_tokenize::ModelTokenizer;

use crate::cli::CheckOptions;
use crate::dataflow::DataFlow;
use crate::effective_config::{EffectiveConfig, kind_of};
use crate::open_event_ports::engine_ports;
use crate::profile::{build_scheduler, known_types};
use crate::reload::read_bounded;

/// The outcome of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    file: String,
    ok: bool,
    /// Why the file can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
    mistakes: Vec<MistakeLine>,
    notices: Vec<NoticeLine>,
    /// Who reads what; absent if the configuration isn't taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_flow: Option<DataFlow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effective: Option<EffectiveConfig>,
    /// The mistakes with their lines and carets, for people.
    #[serde(skip)]
    shown_mistakes: String,
    #[serde(skip)]
    summary: Option<String>,
}

/// A mistake; without a place if it is about no line of the file.
#[derive(Clone, Debug, Serialize)]
struct MistakeLine {
    line: Option<u32>,
    column: Option<u32>,
    message: String,
    hint: Option<String>,
}

/// Something to know of a configuration; without a place if it is about no line of the file.
#[derive(Clone, Debug, Serialize)]
struct NoticeLine {
    line: Option<u32>,
    column: Option<u32>,
    message: String,
}

impl CheckReport {
    /// Checks the file that `options` names as serving would, with the plugin types of `registry`.
    pub fn new(options: &CheckOptions, registry: &Arc<Registry>) -> Self {
        let file = options.file.display().to_string();
        let mut report = Self::empty(file);
        match read_bounded(&options.file) {
            Err(error) => {
                report.ok = false;
                report.unreadable = Some(format!("can't read {}: {error}", report.file));
            }
            Ok(text) => match check(&report.file, &text, &known_types(registry)) {
                Err(error) => report.refuse(&error),
                Ok(config) => report.take(&config, options, registry),
            },
        }
        report
    }

    fn empty(file: String) -> Self {
        Self {
            file,
            ok: true,
            unreadable: None,
            mistakes: Vec::new(),
            notices: Vec::new(),
            data_flow: None,
            effective: None,
            shown_mistakes: String::new(),
            summary: None,
        }
    }

    fn refuse(&mut self, error: &ConfigError) {
        self.ok = false;
        self.shown_mistakes = format!("{error}\n");
        self.mistakes.extend(error.mistakes.iter().map(|mistake| MistakeLine {
            line: Some(mistake.place.line),
            column: Some(mistake.place.column),
            message: mistake.message.clone(),
            hint: mistake.hint.clone(),
        }));
        self.notice(error.notices.clone());
    }

    fn notice(&mut self, notices: Vec<Notice>) {
        self.notices.extend(notices.into_iter().map(|notice| NoticeLine {
            line: notice.place.map(|place| place.line),
            column: notice.place.map(|place| place.column),
            message: notice.message,
        }));
    }

    /// A mistake that has no place in the file.
    fn mistake(&mut self, message: String) {
        self.ok = false;
        // Writing to a String can't fail.
        let _ = writeln!(self.shown_mistakes, "{}: {message}", self.file);
        self.mistakes.push(MistakeLine { line: None, column: None, message, hint: None });
    }

    fn take(&mut self, config: &CheckedConfig, options: &CheckOptions, registry: &Arc<Registry>) {
        if let Err(error) = build_scheduler(config, registry) {
            self.mistake(format!("{error:#}"));
        }
        if let Some(dir) = &options.tokenizer
            && let Err(error) = ModelTokenizer::load(dir)
        {
            self.mistake(format!("--tokenizer: {error}"));
        }
        let backend = config.token_producer.as_ref().map(|producer| &producer.backend);
        let has_tokens = options.tokenizer.is_some()
            || matches!(backend, Some(TokenBackend::Local { .. } | TokenBackend::Vllm(_)));
        let mut notices = config.notices.clone();
        let detector = &config.saturation_detector;
        if config.metrics_source.is_none() && detector.plugin_type == "utilization-detector" {
            let message = format!(
                "{} tells by metrics how full the pool is, and none are scraped: it is never known",
                detector.name
            );
            notices.push(Notice { place: detector.place, message });
        }
        notices.extend(engine_ports(config));
        for profile in &config.profiles {
            // A plugin may be in several profiles, and is told about once.
            for notice in ProfileCheck::new(profile, config, registry, has_tokens).notices() {
                if !notices.contains(&notice) {
                    notices.push(notice);
                }
            }
        }
        // What is about no place comes first; the order within a place stays.
        notices.sort_by_key(|notice| notice.place);
        self.notice(notices);
        if self.ok {
            self.data_flow = Some(DataFlow::new(config, registry, options.tokenizer.is_some()));
        }
        if options.effective && self.ok {
            self.effective = Some(EffectiveConfig::new(config, registry));
            self.summary = Some(config.summary());
        }
    }

    /// Whether serving would take the configuration.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// 0 if the configuration is taken, 1 if it has mistakes, 2 if the file can't be read.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match (&self.unreadable, self.ok) {
            (Some(_), _) => 2,
            (None, false) => 1,
            (None, true) => 0,
        })
    }

    /// As JSON: `{file, ok, mistakes: [{line, column, message, hint}], notices: [{line, column, message}]}`, with
    /// `data_flow: [{consumer, signal, producer, fed_by}]` if it is taken, `effective` if it was asked for, and `unreadable` if the file can't be read. Lines and columns are null for
    /// what is about no place in the file.
    ///
    /// # Errors
    /// A parameter can't be written as JSON.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// For people.
    ///
    /// # Errors
    /// A parameter can't be written as YAML.
    pub fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        if let Some(why) = &self.unreadable {
            return Ok(why.clone() + "\n");
        }
        if self.ok {
            writeln!(text, "{}: ok", self.file)?;
        }
        text.push_str(&self.shown_mistakes);
        for notice in &self.notices {
            match (notice.line, notice.column) {
                (Some(line), Some(column)) => {
                    writeln!(text, "{}:{line}:{column}: notice: {}", self.file, notice.message)?;
                }
                _ => writeln!(text, "{}: notice: {}", self.file, notice.message)?,
            }
        }
        match self.mistakes.len() {
            0 => {}
            1 => writeln!(text, "{}: 1 mistake", self.file)?,
            count => writeln!(text, "{}: {count} mistakes", self.file)?,
        }
        if let Some(flow) = &self.data_flow {
            write!(text, "\nwho reads what:\n{}", flow.lines())?;
        }
        if let Some(summary) = &self.summary {
            writeln!(text, "\n{summary}")?;
        }
        if let Some(effective) = &self.effective {
            write!(text, "\n{}", effective.to_yaml()?)?;
        }
        Ok(text)
    }
}

/// Pickers whose choice depends on nothing but which total is the largest.
const BY_LARGEST_TOTAL: [&str; 1] = ["max-score-picker"];
/// Pickers that don't look at totals.
const WHATEVER_THE_TOTALS: [&str; 1] = ["random-picker"];
/// Scorers that read nothing but the engines' metrics.
const BY_METRICS_ONLY: [&str; 5] = [
    "queue-scorer",
    "kv-cache-utilization-scorer",
    "running-requests-size-scorer",
    "load-aware-scorer",
    "lora-affinity-scorer",
];
/// Scorers that read nothing but prefix matches.
const BY_MATCHES_ONLY: [&str; 1] = ["prefix-cache-scorer"];

/// Why the scores of a scorer are the same for all endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tie {
    Weight,
    NoMetrics,
    NoTokens,
}

impl Tie {
    fn of(
        reference: &PluginRef,
        spec: &PluginSpec,
        config: &CheckedConfig,
        has_tokens: bool,
    ) -> Option<Self> {
        let plugin_type = spec.plugin_type.as_str();
        if reference.weight == 0.0 {
            Some(Self::Weight)
        } else if BY_METRICS_ONLY.contains(&plugin_type) && config.metrics_source.is_none() {
            Some(Self::NoMetrics)
        } else if BY_MATCHES_ONLY.contains(&plugin_type) && !has_tokens && reads_exact_matches(spec, config) {
            Some(Self::NoTokens)
        } else {
            None
        }
    }
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weight => "its weight is 0",
            Self::NoMetrics => "no metrics are scraped",
            Self::NoTokens => "without a tokenizer a text has no matches",
        })
    }
}

/// A profile, looked at for what can't matter.
struct ProfileCheck<'a> {
    profile: &'a ProfileSpec,
    scorers: Vec<ScorerCheck<'a>>,
    /// Filters and scorers that read prefix matches and get none for a text.
    without_tokens: Vec<&'a PluginSpec>,
    picker_type: Option<&'a str>,
}

struct ScorerCheck<'a> {
    reference: &'a PluginRef,
    spec: &'a PluginSpec,
    tie: Option<Tie>,
}

impl<'a> ProfileCheck<'a> {
    fn new(
        profile: &'a ProfileSpec,
        config: &'a CheckedConfig,
        registry: &Registry,
        has_tokens: bool,
    ) -> Self {
        let (scorers, without_tokens) = (Vec::new(), Vec::new());
        let mut check = Self { profile, scorers, without_tokens, picker_type: None };
        for reference in &profile.plugins {
            let spec = config.plugins.iter().find(|plugin| plugin.name == reference.plugin_ref);
            let Some(spec) = spec else { continue };
            let kind = kind_of(&spec.name, config, registry);
            let counts = kind != Some(PluginKind::Scorer) || reference.weight != 0.0;
            let reads = || reads_prefix_matches(spec, registry) && reads_exact_matches(spec, config);
            if counts && !has_tokens && reads() {
                check.without_tokens.push(spec);
            }
            match kind {
                Some(PluginKind::Scorer) => {
                    let tie = Tie::of(reference, spec, config, has_tokens);
                    check.scorers.push(ScorerCheck { reference, spec, tie });
                }
                Some(PluginKind::Picker) => check.picker_type = Some(spec.plugin_type.as_str()),
                _ => {}
            }
        }
        check
    }

    fn notices(&self) -> Vec<Notice> {
        let mut notices: Vec<Notice> = self.scorers.iter().filter_map(|s| s.notice(self.profile)).collect();
        notices.extend(self.without_tokens.iter().map(|spec| Notice {
            place: spec.place,
            message: format!(
                "{} finds matches for prompts of token ids only, since a text needs a tokenizer: serve with \
                 --tokenizer DIR (and give it to this check too), or add a token-producer",
                spec.name
            ),
        }));
        let picker_is_one_of =
            |types: &[&str]| self.picker_type.is_some_and(|picker| types.contains(&picker));
        if picker_is_one_of(&WHATEVER_THE_TOTALS) {
            if !self.scorers.is_empty() {
                notices.push(
                    self.notice("picks whatever the scores are, so its scorers don't matter".to_owned()),
                );
            }
            return notices;
        }
        if let [only] = self.scorers.as_slice()
            && picker_is_one_of(&BY_LARGEST_TOTAL)
            && only.reference.weight > 0.0
            && only.reference.weight != 1.0
        {
            let message = format!(
                "{} is the only scorer of profile {}, so its weight {} changes nothing",
                only.spec.name, self.profile.name, only.reference.weight
            );
            notices.push(Notice { place: only.spec.place, message });
        }
        if self.scorers.is_empty() {
            notices.push(self.notice("has no scorer, so all endpoints tie".to_owned()));
        } else if self.scorers.iter().all(|scorer| scorer.tie.is_some()) {
            let why = self.scorers.iter().filter_map(|s| Some((s, s.tie?)));
            let why: Vec<String> = why.map(|(s, tie)| format!("{}: {tie}", s.spec.name)).collect();
            notices.push(self.notice(format!("has scorers that can only tie ({})", why.join("; "))));
        }
        notices
    }

    fn notice(&self, what: String) -> Notice {
        Notice { place: self.profile.place, message: format!("profile {} {what}", self.profile.name) }
    }
}

impl ScorerCheck<'_> {
    fn notice(&self, profile: &ProfileSpec) -> Option<Notice> {
        let name = &self.spec.name;
        let message = if self.reference.weight == 0.0 {
            format!("{name} has weight 0 in profile {}, so its scores don't count", profile.name)
        } else if self.reference.weight < 0.0 {
            format!("{name} has a negative weight in profile {}: what it prefers is avoided", profile.name)
        } else {
            return None;
        };
        Some(Notice { place: self.spec.place, message })
    }
}

/// Whether the producer that the plugin reads has nothing but exact matches.
fn reads_exact_matches(spec: &PluginSpec, config: &CheckedConfig) -> bool {
    let named = spec.parameters.get("prefixMatchInfoProducerName").and_then(|name| name.as_str());
    let producer = named.and_then(|name| config.prefix_producer(name));
    producer.is_some_and(|producer| matches!(producer, PrefixProducerSpec::Precise(_)))
}

/// Whether the plugin asks for prefix matches when it is built.
fn reads_prefix_matches(spec: &PluginSpec, registry: &Registry) -> bool {
    let mut needs = Needs::default();
    let mut context = BuildContext::new(&spec.name, &mut needs);
    let built = registry.build(&spec.plugin_type, spec.parameters.clone(), &mut context);
    built.is_ok() && !needs.prefix_producers().is_empty()
}
