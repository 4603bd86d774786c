//! A compiled chat template.

use std::io;

use chrono::NaiveDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use crate::content_format::ContentFormat;
use crate::error::{Limit, Rejection, TokenizeError, Unsupported};
use crate::prompt_options::PromptOptions;
use crate::{python, python_json, python_methods, template_source};

const NAME: &str = "chat";

/// A chat template with what its text decides.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    content_format: ContentFormat,
    mentions_developer: bool,
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles a template in the environment that Hugging Face's `apply_chat_template` sets up
    /// (`transformers`, `utils/chat_template_utils.py`).
    pub(crate) fn compile(source: &str) -> Result<Self, Error> {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        let rewritten = template_source::rewrite(source, &syntax);
        let content_format = ContentFormat::detect(&rewritten, &syntax);
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(python::formatter);
        environment.set_unknown_method_callback(python_methods::unknown_method);
        environment.add_filter("tojson", python_json::tojson);
        environment.add_filter("trim", python_methods::trim);
        environment.add_filter("string", |value: &Value| python::str_of(value));
        environment.add_filter(template_source::PERCENT_FILTER, python_methods::percent_format);
        environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
            let message = python::str_of(message);
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
        });
        environment.add_template_owned(NAME, rewritten)?;
        let mentions_developer = source.contains("'developer'") || source.contains("\"developer\"");
        Ok(Self { environment, content_format, mentions_developer })
    }

    /// The form of message contents that the template wants.
    pub(crate) fn content_format(&self) -> ContentFormat {
        self.content_format
    }

    /// Whether the template knows the developer role: whether it names it, be it in a comment.
    pub(crate) fn mentions_developer(&self) -> bool {
        self.mentions_developer
    }

    /// Renders the template with variables, of which later ones replace earlier ones of the same name.
    pub(crate) fn render(
        &self,
        variables: Vec<(String, Value)>,
        options: &PromptOptions,
    ) -> Result<String, TokenizeError> {
        let now = options.clock;
        let strftime_now = Value::from_function(move |format: &str| strftime(now.now(), format));
        let variables = [("strftime_now".to_owned(), strftime_now)].into_iter().chain(variables);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(options.template_fuel));
        let mut output =
            BoundedOutput { bytes: Vec::new(), limit: options.max_rendered_bytes, is_full: false };
        let rendered = environment.get_template(NAME).and_then(|template| {
            template.render_captured_to(Value::from_pairs(variables), &mut output).map(drop)
        });
        if output.is_full {
            return Err(TokenizeError::Limit(Limit::RenderedBytes { bytes: options.max_rendered_bytes }));
        }
        rendered.map_err(|error| render_error(&error, options))?;
        String::from_utf8(output.bytes)
            .map_err(|_| TokenizeError::Unsupported(Unsupported::Template("output is not UTF-8".to_owned())))
    }
}

/// A template error: what the template raised, an exhausted limit, or something that may be a difference
/// between the engines and is therefore not blamed on the request.
fn render_error(error: &Error, options: &PromptOptions) -> TokenizeError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TokenizeError::Rejected(Rejection::RaisedByTemplate(message.clone()));
        }
        if inner.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TokenizeError::Limit(Limit::Fuel { instructions: options.template_fuel });
        }
        cause = inner.source();
    }
    TokenizeError::Unsupported(Unsupported::Template(error.to_string()))
}

fn strftime(time: NaiveDateTime, format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", time.format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now has an unknown directive"))?;
    Ok(text)
}

/// Output of a template, cut off at a limit.
struct BoundedOutput {
    bytes: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
