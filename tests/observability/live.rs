//! The test itself: a healthy pool, trouble, and recovery.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;
use warmroute_demo::harness::Tools;

use crate::check::{Check, Wanted, known_metrics, strange_labels, unknown_metrics};
use crate::dashboard::DashboardFile;
use crate::peers::{Expected, PeerFile};
use crate::prometheus::{self, Prometheus, promtool};
use crate::rules::{self, RuleFile};
use crate::running_pool::RunningPool;
use crate::say;

/// Alerts that the trouble must bring, at least as pending ones.
const EXPECTED_ALERTS: [&str; 2] = ["WarmrouteEndpointsNotFresh", "WarmrouteConfigRefused"];

/// How long that may take.
const ALERTS_WITHIN: Duration = Duration::from_secs(60);

/// Two scrapes and an evaluation, so that what the pickers show is what Prometheus knows.
const SETTLED_AFTER: Duration = Duration::from_secs(4);

/// Runs it, and writes `report.md` to `out`.
///
/// # Errors
/// Something doesn't start, or an expression isn't as it must be.
pub(crate) async fn test(out: &Path) -> anyhow::Result<()> {
    let root = Tools::root();
    let (rules, out) = (RuleFile::load(&root)?, std::path::absolute(out)?);
    let programs = prometheus::locate(&root)?;
    say("promtool: rules and their tests");
    promtool(&programs, &["check", "rules"], &rules::path(&root))?;
    promtool(&programs, &["test", "rules"], &rules::tests_path(&root))?;

    let (mut checks, mut complaints) = (all_checks(&root, &rules)?, Vec::new());
    let tools = tools(&root, &out)?;
    let logs = tools.logs.clone();
    say("starting engines, pickers, Envoy and Prometheus");
    let mut pool = RunningPool::start(tools, &out.join("work")).await?;
    let mut server = Prometheus::start(
        &programs.join("prometheus"),
        &out.join("prometheus"),
        &logs,
        &rules::path(&root),
        &pool.pickers(),
    )
    .await?;
    let result = phases(&mut pool, &mut server, &rules, &mut checks, &mut complaints).await;
    write_report(&out, &checks, &complaints)?;
    server.stop().await;
    pool.stack.stop().await;
    result?;
    if complaints.is_empty() {
        say(&format!(
            "{} expressions are as they must be: {}",
            checks.len(),
            out.join("report.md").display()
        ));
        return Ok(());
    }
    bail!("{} things are not as they must be:\n{}", complaints.len(), complaints.join("\n"))
}

async fn phases(
    pool: &mut RunningPool,
    server: &mut Prometheus,
    rules: &RuleFile,
    checks: &mut [Check],
    complaints: &mut Vec<String>,
) -> anyhow::Result<()> {
    say("load on a healthy pool");
    pool.load(1).await?;
    ask_all(checks, server, "healthy", true, complaints).await;
    complaints.extend(server.broken_rules().await?);
    for alert in server.alerts().await?.into_iter().filter(|alert| !rules.is_about_time(alert)) {
        complaints.push(format!("an alert is {} in a healthy pool: {:?}", alert.state, alert.labels));
    }
    pool.make_trouble().await?;
    say("waiting for alerts");
    wait_for_alerts(server).await?;
    ask_all(checks, server, "in trouble", false, complaints).await;
    say("the engine comes back; load");
    pool.end_trouble().await?;
    pool.load(2).await?;
    ask_all(checks, server, "after trouble", false, complaints).await;
    complaints.extend(server.broken_rules().await?);
    complaints.extend(strange_labels(checks, server).await?);
    complaints.extend(checks.iter().filter_map(Check::last_complaint));
    pool.stack.check()?;
    Ok(server.process.check()?)
}

async fn ask_all(
    checks: &mut [Check],
    server: &Prometheus,
    when: &'static str,
    is_healthy: bool,
    complaints: &mut Vec<String>,
) {
    tokio::time::sleep(SETTLED_AFTER).await;
    for check in checks {
        complaints.extend(check.ask(server, when, is_healthy).await);
    }
}

async fn wait_for_alerts(server: &Prometheus) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let alerts = server.alerts().await?;
        let is_there = |name: &&str| {
            alerts.iter().any(|alert| alert.labels.get("alertname").is_some_and(|found| found == name))
        };
        let missing: Vec<&str> = EXPECTED_ALERTS.into_iter().filter(|name| !is_there(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if started.elapsed() > ALERTS_WITHIN {
            bail!("no alert {} after {ALERTS_WITHIN:?}", missing.join(", "));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Every expression of dashboards, rules and other projects.
fn all_checks(root: &Path, rules: &RuleFile) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (place, query) in DashboardFile::load(root)?.queries() {
        let wanted = match (&query.empty, &query.unseen) {
            (None, None) => Wanted::Always,
            (Some(_), None) => Wanted::InTrouble,
            (Some(_), Some(_)) => Wanted::Quiet,
            (None, Some(_)) => bail!("{place} says why it is unseen and not why it is empty"),
        };
        checks.push(Check::new(place, &query.expr, &query.legend, wanted));
    }
    for rule in rules.rules() {
        let (name, wanted) = match (&rule.record, &rule.alert) {
            (Some(name), _) => (name, Wanted::Always),
            (_, Some(name)) => (name, Wanted::Quiet),
            _ => bail!("a rule is neither an alert nor recorded: {}", rule.expr),
        };
        checks.push(Check::new(name.clone(), &rule.expr, "", wanted));
    }
    let known = known_metrics(rules.rules().filter_map(|rule| rule.record.clone()))?;
    for check in &checks {
        let unknown = unknown_metrics(&check.named(), &known);
        if !unknown.is_empty() {
            bail!("{} names {unknown:?}, which the picker doesn't export", check.place);
        }
    }
    for source in PeerFile::load(root)?.sources {
        for query in &source.queries {
            let wanted = match query.expect {
                Expected::Data => Wanted::Always,
                Expected::Trouble => Wanted::InTrouble,
                Expected::Quiet => Wanted::Quiet,
                Expected::None => Wanted::Never,
            };
            let unknown = unknown_metrics(&crate::expression::Named::of(&source.current(query)), &known);
            if query.expect != Expected::None && !unknown.is_empty() {
                bail!(
                    "{} of {} names {unknown:?}, which the picker doesn't export",
                    query.panel,
                    source.name
                );
            }
            let place = format!("{}, \"{}\"", source.name, query.panel);
            checks.push(Check::new(place, &source.current(query), "", wanted));
        }
    }
    Ok(checks)
}

/// Picker and engines of this build, which are beside this program, and what the set-up fetched.
fn tools(root: &Path, out: &Path) -> anyhow::Result<Tools> {
    let folder = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
    let built = |name: &str| {
        let path = folder.join(name);
        if !path.is_file() {
            bail!("there is no {}: build it as `make test-observability` does", path.display());
        }
        Ok(path)
    };
    Ok(Tools {
        root: root.to_owned(),
        picker: built("warmroute-under-test")?,
        engine_sim: built("warmroute-engine-sim")?,
        envoy: Tools::locate_envoy()?,
        tokenizer: Tools::locate_tokenizer()?,
        logs: out.join("logs"),
    })
}

fn write_report(out: &Path, checks: &[Check], complaints: &[String]) -> anyhow::Result<()> {
    let mut text = String::from("| Expression | First data |\n| --- | --- |\n");
    for check in checks {
        // Writing to a string can't fail.
        let _ = writeln!(text, "| {} | {} |", check.place.replace('|', "\\|"), check.verdict());
    }
    let _ = writeln!(text, "\n{} complaints", complaints.len());
    for complaint in complaints {
        let _ = writeln!(text, "- {complaint}");
    }
    Ok(std::fs::write(out.join("report.md"), text)?)
}
