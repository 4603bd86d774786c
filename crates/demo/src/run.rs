//! One scenario under one policy: start everything, warm up, measure, stop.

use std::time::{Duration, Instant};

use warmroute_inference_api::{api_of_path, parse_request};
use warmroute_tokenize::{ModelTokenizer, PromptOptions};

use crate::DemoError;
use crate::ceiling::Ceiling;
use crate::harness::{HttpClient, Recipe, Stack, StackOptions, Tools};
use crate::load::{LoadGenerator, Outcome, PlannedRequest, Progress};
use crate::machine::ProcessorTime;
use crate::policy::Policy;
use crate::report::{Measured, PolicyReport};
use crate::scenario::{Plan, Scenario};
use crate::scrape::Reading;

/// Longer than any request of the demo should take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What is going on, for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RunEvent {
    /// Processes are being started.
    Starting,
    /// All of them are ready, after this time.
    Ready(Duration),
    /// A warm-up request has ended.
    WarmUp(Progress),
    /// A measured request has ended.
    Measuring(Progress),
    /// Everything is measured; processes are being stopped.
    Stopping,
}

/// A scenario with its requests and what they could hit at best, the same for every policy.
#[derive(Debug, Clone)]
pub struct PreparedScenario {
    /// The scenario.
    pub scenario: Scenario,
    /// Its requests.
    pub plan: Plan,
    /// Prompt tokens of the measured requests, by our own tokenizer.
    pub prompt_tokens: u64,
    /// Those of them that could be hit at best.
    pub ceiling_tokens: u64,
    /// Different KV blocks of all prompts together, warm-up included: the working set.
    pub working_set_blocks: u64,
    model: String,
}

/// What one run gave: the report, and every single outcome for tests that look closer.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// The sums.
    pub report: PolicyReport,
    /// The measured requests, in the order of the plan.
    pub outcomes: Vec<Outcome>,
}

impl PreparedScenario {
    /// Writes the requests of `scenario` and tokenises them to learn their ceiling. Takes a moment of CPU.
    ///
    /// # Errors
    /// [`DemoError::Tokens`] if a request cannot be tokenised.
    pub fn new(scenario: &Scenario, model: &str, tokenizer: &ModelTokenizer) -> Result<Self, DemoError> {
        let plan = Plan::new(scenario, model);
        let mut ceiling = Ceiling::new(scenario.engines.block_size_tokens);
        let (mut prompt_tokens, mut ceiling_tokens) = (0, 0);
        for (request, measured) in
            plan.warm_up.iter().map(|request| (request, false)).chain(plan.requests.iter().map(|r| (r, true)))
        {
            let ids = prompt_ids(tokenizer, request)
                .map_err(|reason| DemoError::Tokens { scenario: scenario.name.clone(), reason })?;
            let hit = ceiling.observe(&ids);
            if measured {
                prompt_tokens += ids.len() as u64;
                ceiling_tokens += hit;
            }
        }
        Ok(Self {
            scenario: scenario.clone(),
            plan,
            prompt_tokens,
            ceiling_tokens,
            working_set_blocks: ceiling.distinct_blocks(),
            model: model.to_owned(),
        })
    }

    /// The stack for a run of `scenario` under `policy`: its pickers behind the recommended Envoy recipe.
    pub fn stack(scenario: &Scenario, model: &str, policy: &Policy) -> StackOptions {
        StackOptions {
            label: format!("{}-{}", scenario.name, policy.name),
            engines: scenario.engines.options(model),
            picker: policy.picker_options(),
            picker_replicas: scenario.pickers,
            recipe: Recipe::Buffered,
            gateway_port: None,
        }
    }

    /// The engines and the load in words, for the report.
    pub fn setup(&self) -> Vec<String> {
        let engines = &self.scenario.engines;
        let cache_tokens = u64::from(engines.num_gpu_blocks) * u64::from(engines.block_size_tokens);
        let requests = self.plan.requests.len().max(1);
        let set_tokens = self.working_set_blocks * u64::from(engines.block_size_tokens);
        let mut lines = vec![
            format!(
                "{} engines, each {} KV blocks of {} tokens ({} tokens), {} µs per computed prompt token, \
                 {} ms per generated token, at most {} requests at once",
                engines.count,
                engines.num_gpu_blocks,
                engines.block_size_tokens,
                grouped(cache_tokens),
                engines.prefill_us_per_token,
                engines.decode_ms_per_token,
                engines.max_num_seqs,
            ),
            format!(
                "{} warm-up and {requests} measured requests of {} prompt tokens on average; all different blocks of \
                 all prompts together are {} tokens, {:.*} times the cache of one engine",
                self.plan.warm_up.len(),
                grouped((self.prompt_tokens as f64 / requests as f64).round() as u64),
                grouped(set_tokens),
                // Enough digits that a small working set does not read as none.
                if set_tokens < cache_tokens { 2 } else { 1 },
                set_tokens as f64 / cache_tokens.max(1) as f64,
            ),
        ];
        if self.scenario.pickers > 1 {
            lines.push(format!(
                "{} replicas of the picker, each asked by Envoy for its share of the requests; they don't talk to each \
                 other",
                self.scenario.pickers
            ));
        }
        lines.push(match self.plan.pace {
            crate::load::Pace::OneByOne(gap) => {
                format!("load: one request at a time, {} ms after the end of the one before", gap.as_millis())
            }
            crate::load::Pace::Scheduled => format!(
                "load: {:.1} requests per second on average, random (Poisson) and the same for every policy; if nothing \
                 were cached, prefill alone would keep the engines {:.0} % busy",
                self.rate_per_s(),
                100.0 * self.uncached_utilisation(),
            ),
        });
        lines
    }

    fn rate_per_s(&self) -> f64 {
        let last = self.plan.requests.last().map_or(0.0, |request| request.due.as_secs_f64());
        self.plan.requests.len() as f64 / last.max(1e-9)
    }

    /// Share of all engines' time that prefill would take if every prompt token were computed.
    fn uncached_utilisation(&self) -> f64 {
        let engines = &self.scenario.engines;
        let tokens_per_request = self.prompt_tokens as f64 / self.plan.requests.len().max(1) as f64;
        self.rate_per_s() * tokens_per_request * engines.prefill_us_per_token / 1e6 / f64::from(engines.count)
    }

    /// Starts a fresh stack under `policy`, sends the warm-up and the measured requests, and stops it.
    ///
    /// # Errors
    /// A process that does not start or ends meanwhile, a metrics page that cannot be read. Failed requests are no
    /// error: they are in the report.
    pub async fn run(
        &self,
        tools: &Tools,
        policy: &Policy,
        mut observe: impl FnMut(RunEvent),
    ) -> Result<RunResult, DemoError> {
        observe(RunEvent::Starting);
        let started = Instant::now();
        let mut stack = Stack::start(tools, &Self::stack(&self.scenario, &self.model, policy)).await?;
        observe(RunEvent::Ready(started.elapsed()));
        let result = self.measure(&stack, policy, &mut observe).await?;
        stack.check()?;
        observe(RunEvent::Stopping);
        stack.stop().await;
        Ok(result)
    }

    async fn measure(
        &self,
        stack: &Stack,
        policy: &Policy,
        observe: &mut impl FnMut(RunEvent),
    ) -> Result<RunResult, DemoError> {
        let client = HttpClient::default();
        let load = LoadGenerator::new(stack.gateway(), REQUEST_TIMEOUT);
        let plan = &self.plan;
        load.run(&plan.warm_up, plan.warm_up_pace, |progress| observe(RunEvent::WarmUp(progress))).await;
        let (before, time_before) = (Reading::take(&client, stack).await?, ProcessorTime::now());
        let outcomes =
            load.run(&plan.requests, plan.pace, |progress| observe(RunEvent::Measuring(progress))).await;
        let (after, time_after) = (Reading::take(&client, stack).await?, ProcessorTime::now());
        let between = after.since(&before);
        let addresses = stack.fleet.addresses().into_iter().map(|address| address.to_string());
        let engines: Vec<_> = addresses.zip(between.engines).collect();
        let measured = Measured {
            policy: &policy.name,
            description: &policy.description,
            engines: &engines,
            decisions: between.decisions.as_ref(),
            ceiling_tokens: self.ceiling_tokens,
            machine_busy: time_after.zip(time_before).and_then(|(after, before)| after.busy_since(before)),
        };
        Ok(RunResult { report: PolicyReport::new(&measured, &outcomes), outcomes })
    }
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The token ids that an engine will see for `request`.
fn prompt_ids(tokenizer: &ModelTokenizer, request: &PlannedRequest) -> Result<Vec<u32>, String> {
    let parsed =
        parse_request(api_of_path(request.path), &request.body).map_err(|error| error.to_string())?;
    let prompts = tokenizer.tokens(&parsed, &PromptOptions::default()).map_err(|error| error.to_string())?;
    prompts.into_iter().next().map(|prompt| prompt.ids).ok_or_else(|| "no prompt".to_owned())
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
