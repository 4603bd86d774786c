use super::TelemetryError;

/// The peer's default service name.
const SERVICE_NAME: &str = "llm-d-epp";
/// The peer's default share of traces.
const DEFAULT_RATIO: f64 = 0.1;

const EXPORTERS: &str = "write otlp, console or none";
const SAMPLERS: &str = "write parentbased_traceidratio, parentbased_always_on, parentbased_always_off, traceidratio, \
                        always_on or always_off";
const PLAINTEXT: &str = "spans are sent in plaintext: write http://HOST:4317";
const RATIO: &str = "write a number from 0 to 1";

/// Where spans go and which are made, as OpenTelemetry's environment variables say.
///
/// Specification: <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>. The exporter
/// itself reads `OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT` and the like, and `OTEL_BSP_*`.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// Where spans go.
    pub exporter: TraceExporter,
    /// Which are made.
    pub sampler: TraceSampler,
    /// Name of this service; None: `OTEL_RESOURCE_ATTRIBUTES` names it.
    pub service_name: Option<String>,
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceExporter {
    /// To a collector, by OTLP over gRPC.
    Otlp {
        /// URL of the collector.
        endpoint: String,
    },
    /// To the log.
    Console,
}

/// Which traces are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceSampler {
    /// Whether a caller's decision is followed where there is one.
    pub follows_parent: bool,
    /// Share of the others, 0 to 1.
    pub ratio: f64,
}

impl TraceSettings {
    /// Reads the variables by `variable`; an empty one counts as absent. None: there is nothing to trace to.
    ///
    /// The llm-d Router EPP prints spans unless told otherwise; here they have to be asked for, by
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_TRACES_EXPORTER`.
    ///
    /// # Errors
    /// A variable says what isn't understood.
    pub fn read(variable: impl Fn(&'static str) -> Option<String>) -> Result<Option<Self>, TelemetryError> {
        let read = |name| variable(name).filter(|value| !value.is_empty());
        if read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let endpoint =
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(read);
        let exporter = read("OTEL_TRACES_EXPORTER");
        let exporter = match (exporter.as_deref(), endpoint) {
            (None, None) | (Some("none"), _) => return Ok(None),
            (Some("console"), _) => TraceExporter::Console,
            (None | Some("otlp"), endpoint) => {
                let endpoint = endpoint.unwrap_or_else(|| "http://localhost:4317".to_owned());
                TraceExporter::Otlp { endpoint: plaintext_url(endpoint)? }
            }
            (Some(other), _) => return Err(not_understood("OTEL_TRACES_EXPORTER", other, EXPORTERS)),
        };
        let named_otherwise =
            read("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|attributes| names_service(&attributes));
        let service_name =
            read("OTEL_SERVICE_NAME").or_else(|| (!named_otherwise).then(|| SERVICE_NAME.to_owned()));
        Ok(Some(Self { exporter, sampler: TraceSampler::read(read)?, service_name }))
    }
}

impl TraceSampler {
    fn read(read: impl Fn(&'static str) -> Option<String>) -> Result<Self, TelemetryError> {
        let ratio = || match read("OTEL_TRACES_SAMPLER_ARG") {
            None => Ok(DEFAULT_RATIO),
            Some(text) => match text.parse() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
                _ => Err(not_understood("OTEL_TRACES_SAMPLER_ARG", &text, RATIO)),
            },
        };
        let name = read("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_traceidratio".to_owned());
        let (follows_parent, rest) = match name.strip_prefix("parentbased_") {
            Some(rest) => (true, rest),
            None => (false, name.as_str()),
        };
        let ratio = match rest {
            "traceidratio" => ratio()?,
            "always_on" => 1.0,
            "always_off" => 0.0,
            _ => return Err(not_understood("OTEL_TRACES_SAMPLER", &name, SAMPLERS)),
        };
        Ok(Self { follows_parent, ratio })
    }
}

/// The EPP takes an address without a scheme too.
fn plaintext_url(endpoint: String) -> Result<String, TelemetryError> {
    if endpoint.starts_with("https://") {
        return Err(not_understood("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint, PLAINTEXT));
    }
    Ok(if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") })
}

fn names_service(attributes: &str) -> bool {
    attributes.split(',').any(|pair| pair.split('=').next().is_some_and(|key| key.trim() == "service.name"))
}

fn not_understood(variable: &'static str, value: &str, expected: &'static str) -> TelemetryError {
    TelemetryError::Variable { variable, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<TraceSettings>, String> {
        let variable = |name: &'static str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        TraceSettings::read(variable).map_err(|error| error.to_string())
    }

    fn otlp(endpoint: &str) -> TraceSettings {
        TraceSettings {
            exporter: TraceExporter::Otlp { endpoint: endpoint.to_owned() },
            sampler: TraceSampler { follows_parent: true, ratio: 0.1 },
            service_name: Some("llm-d-epp".to_owned()),
        }
    }

    #[test]
    fn nothing_is_traced_unless_there_is_something_to_trace_to() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        assert_eq!(read(&[ENDPOINT]), Ok(Some(otlp("http://collector:4317"))));
        assert_eq!(read(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(Some(otlp("http://localhost:4317"))));
        let bare = read(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4317"), ENDPOINT]);
        assert_eq!(bare, Ok(Some(otlp("http://collector:4317"))));
        let console = read(&[("OTEL_TRACES_EXPORTER", "console")]).unwrap().unwrap();
        assert_eq!(console.exporter, TraceExporter::Console);
    }

    #[test]
    fn samplers_and_names() {
        let console = ("OTEL_TRACES_EXPORTER", "console");
        let sampler = |name: &str, ratio: &str| {
            let variables = [console, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
            read(&variables).map(|settings| settings.unwrap().sampler)
        };
        let expected = |follows_parent, ratio| Ok(TraceSampler { follows_parent, ratio });
        assert_eq!(sampler("", "0.25"), expected(true, 0.25));
        assert_eq!(sampler("traceidratio", "1"), expected(false, 1.0));
        assert_eq!(sampler("parentbased_always_on", "no number"), expected(true, 1.0));
        assert_eq!(sampler("always_off", ""), expected(false, 0.0));
        let error = sampler("xray", "").unwrap_err();
        assert!(
            error.starts_with("OTEL_TRACES_SAMPLER=xray is not understood: write parentbased_"),
            "{error}"
        );
        assert!(sampler("", "2").unwrap_err().contains("OTEL_TRACES_SAMPLER_ARG=2"));

        let name = |variables: &[(&str, &str)]| {
            read(&[&[console], variables].concat()).unwrap().unwrap().service_name
        };
        assert_eq!(name(&[("OTEL_SERVICE_NAME", "epp-a")]).as_deref(), Some("epp-a"));
        assert_eq!(name(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=x")]), None);
        assert_eq!(name(&[("OTEL_RESOURCE_ATTRIBUTES", "a=service.name")]).as_deref(), Some("llm-d-epp"));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let error = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4317")]).unwrap_err();
        assert!(error.contains("plaintext"), "{error}");
        assert!(
            read(&[("OTEL_TRACES_EXPORTER", "zipkin")]).unwrap_err().contains("write otlp, console or none")
        );
    }
}
