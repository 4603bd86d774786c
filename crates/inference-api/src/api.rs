//! Which API a path belongs to.

use crate::rejection::Rejection;

/// The API whose schema a request body follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// OpenAI `…chat/completions` and `…chat/completions/render`: `messages`.
    ChatCompletions,
    /// OpenAI `…completions` and `…completions/render`: `prompt`.
    Completions,
    /// OpenAI `…embeddings`: `input`.
    Embeddings,
    /// OpenAI `…responses`: `input`.
    Responses,
    /// OpenAI `…conversations`: `items`.
    Conversations,
    /// OpenAI `…images/generations`: `prompt`.
    ImageGenerations,
    /// Anthropic `…messages`: `messages`.
    Messages,
    /// Anthropic `…messages/count_tokens`. Like [`Api::Other`].
    CountTokens,
    /// vLLM `…inference/v1/generate`: `token_ids`.
    VllmGenerate,
    /// SGLang `/generate`: `input_ids` or `text`.
    SglangGenerate,
    /// Any other path. The body is not required to be JSON; model and stream are read if it is.
    Other,
}

impl Api {
    /// Whether bodies pass unread by the picker's rules: no schema is demanded of them.
    pub fn is_raw(self) -> bool {
        matches!(self, Self::CountTokens | Self::Other)
    }

    /// Whether a body must name its model.
    pub fn needs_model(self) -> bool {
        !self.is_raw() && self != Self::SglangGenerate
    }

    /// Whether the engine may be asked for another model than the body names.
    pub fn takes_another_model(self) -> bool {
        self.needs_model()
    }

    /// The word for it in receipts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat-completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::Conversations => "conversations",
            Self::ImageGenerations => "image-generations",
            Self::Messages => "messages",
            Self::CountTokens => "count-tokens",
            Self::VllmGenerate => "vllm-generate",
            Self::SglangGenerate => "sglang-generate",
            Self::Other => "other",
        }
    }
}

/// A reader of request bodies, as configurations name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiParser {
    /// `openai-parser`
    OpenAi,
    /// `anthropic-parser`
    Anthropic,
    /// `vllmhttp-parser`
    VllmHttp,
    /// `sglanghttp-parser`
    SglangHttp,
    /// `passthrough-parser`: every path that no parser before it takes.
    Passthrough,
}

impl ApiParser {
    /// The path suffixes that it takes; none for a fallback.
    fn suffixes(self) -> &'static [(&'static str, Api)] {
        match self {
            Self::OpenAi => &[
                ("chat/completions", Api::ChatCompletions),
                ("chat/completions/render", Api::ChatCompletions),
                ("completions", Api::Completions),
                ("completions/render", Api::Completions),
                ("embeddings", Api::Embeddings),
                ("responses", Api::Responses),
                ("conversations", Api::Conversations),
                ("images/generations", Api::ImageGenerations),
            ],
            Self::Anthropic => &[("messages", Api::Messages), ("messages/count_tokens", Api::CountTokens)],
            Self::VllmHttp => &[("inference/v1/generate", Api::VllmGenerate)],
            Self::SglangHttp => &[("generate", Api::SglangGenerate)],
            Self::Passthrough => &[],
        }
    }
}

/// The parsers of a configuration, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParserList(Vec<ApiParser>);

impl Default for ParserList {
    /// What the llm-d router has if a configuration names none.
    fn default() -> Self {
        Self(vec![ApiParser::OpenAi, ApiParser::Anthropic, ApiParser::VllmHttp, ApiParser::Passthrough])
    }
}

impl FromIterator<ApiParser> for ParserList {
    /// A list that ends with its first fallback, since nothing reaches what comes behind.
    fn from_iter<I: IntoIterator<Item = ApiParser>>(parsers: I) -> Self {
        let mut list = Vec::new();
        for parser in parsers {
            list.push(parser);
            if parser == ApiParser::Passthrough {
                break;
            }
        }
        Self(list)
    }
}

impl ParserList {
    /// The API of a request path, by the rules of the llm-d router: the query is cut, one trailing `/` is trimmed, and
    /// the longest matching suffix decides, without regard to path segments; else the fallback takes it.
    ///
    /// # Errors
    /// No parser takes the path.
    pub fn api_of_path(&self, path: &str) -> Result<Api, Rejection> {
        let path = path.split_once('?').map_or(path, |(path, _)| path).trim();
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut longest: Option<(&str, Api)> = None;
        for (suffix, api) in self.0.iter().flat_map(|parser| parser.suffixes()) {
            if path.ends_with(suffix) && longest.is_none_or(|(other, _)| suffix.len() > other.len()) {
                longest = Some((suffix, *api));
            }
        }
        match longest {
            // The peer's parser takes the suffix and then this one path only.
            Some((suffix, Api::SglangGenerate)) if path.trim_start_matches('/') != suffix => {
                Err(Rejection::unsupported_path(path))
            }
            Some((_, api)) => Ok(api),
            None if self.0.contains(&ApiParser::Passthrough) => Ok(Api::Other),
            None => Err(Rejection::no_parser(path)),
        }
    }
}

/// The API of a path by the default parsers.
pub fn api_of_path(path: &str) -> Api {
    ParserList::default().api_of_path(path).unwrap_or(Api::Other)
}

#[cfg(test)]
mod tests {
    use super::{Api, ApiParser, ParserList};

    #[test]
    fn paths_of_the_default_list() {
        let parsers = ParserList::default();
        for (path, api) in [
            ("/v1/chat/completions", Api::ChatCompletions),
            ("/v1/chat/completions/", Api::ChatCompletions),
            ("/prefix/v1/chat/completions?x=/v1/completions", Api::ChatCompletions),
            ("/v1/chat/completions/render", Api::ChatCompletions),
            ("/v1/completions", Api::Completions),
            ("/v1/completions/render/", Api::Completions),
            ("/v1/mycompletions", Api::Completions),
            ("completions", Api::Completions),
            ("/v1/completions//", Api::Other),
            ("/v1/embeddings", Api::Embeddings),
            ("/v1/embeddings/render", Api::Other),
            ("/v1/responses", Api::Responses),
            ("/v1/responses/resp_1", Api::Other),
            ("/v1/conversations", Api::Conversations),
            ("/v1/images/generations", Api::ImageGenerations),
            ("/v1/messages?beta=true", Api::Messages),
            ("/v1/messages/count_tokens", Api::CountTokens),
            ("/inference/v1/generate", Api::VllmGenerate),
            ("/generate", Api::Other),
            ("/tokenize", Api::Other),
            ("/v1/completions/x", Api::Other),
            ("", Api::Other),
        ] {
            assert_eq!(parsers.api_of_path(path), Ok(api), "{path}");
        }
    }

    #[test]
    fn without_a_fallback_other_paths_are_refused() {
        let parsers: ParserList = [ApiParser::Anthropic, ApiParser::SglangHttp].into_iter().collect();
        let text = |path: &str| parsers.api_of_path(path).unwrap_err().to_string();
        assert_eq!(
            text("/v1/completions?q"),
            "no parser registered matching path suffix for: /v1/completions"
        );
        assert_eq!(text("/inference/v1/generate"), "unsupported path: /inference/v1/generate");
        assert_eq!(parsers.api_of_path("/generate/"), Ok(Api::SglangGenerate));
        assert_eq!(
            text(&"ü".repeat(1000)).len(),
            200 + "no parser registered matching path suffix for: ".len()
        );
    }

    #[test]
    fn the_first_fallback_ends_the_list() {
        let parsers: ParserList = [ApiParser::Passthrough, ApiParser::OpenAi].into_iter().collect();
        assert_eq!(parsers.api_of_path("/v1/completions"), Ok(Api::Other));
    }
}
