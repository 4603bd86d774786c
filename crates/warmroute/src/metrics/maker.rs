use std::borrow::Cow;
use std::cell::RefCell;

use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Makes metrics and registers them.
pub(super) struct Maker {
    pub(super) registry: Registry,
    pub(super) names: RefCell<Vec<&'static str>>,
}

impl Maker {
    pub(super) fn new() -> Self {
        Self { registry: Registry::new(), names: RefCell::default() }
    }

    fn keep<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        name: &'static str,
        metric: C,
    ) -> Result<C, Error> {
        self.registry.register(Box::new(metric.clone()))?;
        self.names.borrow_mut().push(name);
        Ok(metric)
    }

    pub(super) fn counter(&self, name: &'static str, help: &str) -> Result<IntCounter, Error> {
        self.keep(name, IntCounter::new(name, help_of(name, help))?)
    }

    pub(super) fn counters(
        &self,
        name: &'static str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, Error> {
        self.keep(name, IntCounterVec::new(Opts::new(name, help_of(name, help)), labels)?)
    }

    pub(super) fn gauge(&self, name: &'static str, help: &str) -> Result<IntGauge, Error> {
        self.keep(name, IntGauge::new(name, help_of(name, help))?)
    }

    pub(super) fn gauges(
        &self,
        name: &'static str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, Error> {
        self.keep(name, IntGaugeVec::new(Opts::new(name, help_of(name, help)), labels)?)
    }

    pub(super) fn float_gauge(&self, name: &'static str, help: &str) -> Result<Gauge, Error> {
        self.keep(name, Gauge::new(name, help_of(name, help))?)
    }

    pub(super) fn float_gauges(
        &self,
        name: &'static str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, Error> {
        self.keep(name, GaugeVec::new(Opts::new(name, help_of(name, help)), labels)?)
    }

    /// One gauge that is 1 and says something by its labels.
    pub(super) fn info(&self, name: &'static str, help: &str, labels: &[(&str, &str)]) -> Result<(), Error> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let opts = Opts::new(name, help_of(name, help)).const_labels(labels);
        self.keep(name, Gauge::with_opts(opts)?)?.set(1.0);
        Ok(())
    }

    pub(super) fn histogram(
        &self,
        name: &'static str,
        help: &str,
        bounds: &[f64],
    ) -> Result<Histogram, Error> {
        let opts = HistogramOpts::new(name, help_of(name, help)).buckets(bounds.to_vec());
        self.keep(name, Histogram::with_opts(opts)?)
    }

    pub(super) fn histograms(
        &self,
        name: &'static str,
        help: &str,
        labels: &[&str],
        bounds: &[f64],
    ) -> Result<HistogramVec, Error> {
        let opts = HistogramOpts::new(name, help_of(name, help)).buckets(bounds.to_vec());
        self.keep(name, HistogramVec::new(opts, labels)?)
    }
}

/// The peer's help texts begin with the stability of the metric.
pub(super) fn help_of<'a>(name: &str, help: &'a str) -> Cow<'a, str> {
    if name.starts_with("llm_d_epp_") { format!("[ALPHA] {help}").into() } else { help.into() }
}
