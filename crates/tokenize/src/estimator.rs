//! Pseudo-tokens: what stands in for token ids where no tokenizer is at hand.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use warmroute_inference_api::{Api, ApiRequest, Field, JsonNumber, JsonValue, Prompt, parse_json};
use xxhash_rust::xxh3::xxh3_64;

use crate::media_estimate::{ImageEstimate, Resolution, VideoEstimate, VideoHints, audio_tokens};

/// Bytes of text per token, as the llm-d Router has it.
const TOKEN_BYTES: usize = 4;
/// Most tokens that the media of one request get; what comes behind gets one each.
const MAX_MEDIA_TOKENS: u32 = 2_000_000;
/// Base64 characters of a picture that are looked into for its size; a multiple of 4.
const HEADER_CHARACTERS: usize = 256 * 1024;
/// A line that differs with each request and isn't part of the prompt.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Guesses how many tokens a prompt has, and makes pseudo-tokens of it.
///
/// Pseudo-tokens are the bytes of roles and texts, four to a token, so that prompts with a common beginning have
/// pseudo-tokens with a common beginning. A picture, a sound or a video is as many equal pseudo-tokens, made from a hash
/// of its content, as it is taken to have tokens. No engine knows them. The scheme is that of the llm-d Router
/// (`pkg/epp/framework/plugins/requestcontrol/dataproducer/tokenizer/estimate.go` in github.com/llm-d/llm-d-router);
/// the bytes differ where the peer writes JSON anew.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimator {
    /// How pictures are counted.
    pub image: ImageEstimate,
    /// How videos are counted.
    pub video: VideoEstimate,
}

impl Estimator {
    /// The number of pseudo-tokens of each prompt; without media about, and without a look at the texts. None for
    /// APIs that have no prompt.
    pub fn count(&self, request: &ApiRequest<'_>, hints: &VideoHints) -> Option<Vec<u32>> {
        let of_bytes = |bytes: usize| u32::try_from(bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX);
        Some(match &request.prompt {
            Prompt::None => return None,
            _ if request.api == Api::ImageGenerations => return None,
            Prompt::TokenIds(ids) => vec![count_of(ids)],
            Prompt::TokenIdLists(lists) => lists.iter().map(|ids| count_of(ids)).collect(),
            Prompt::Texts(texts) => texts.iter().map(|text| of_bytes(text.len())).collect(),
            _ if request.media_parts > 0 => {
                self.pseudo_tokens(request, hints)?.iter().map(|ids| count_of(ids)).collect()
            }
            _ => vec![of_bytes(request.text_bytes())],
        })
    }

    /// The pseudo-tokens of each prompt; token ids are taken as they are. None for APIs that have no prompt.
    pub fn pseudo_tokens(&self, request: &ApiRequest<'_>, hints: &VideoHints) -> Option<Vec<Vec<u32>>> {
        let text = |text: &str| PseudoTokens::new(self, hints).with(text.as_bytes());
        Some(match &request.prompt {
            Prompt::None => return None,
            _ if request.api == Api::ImageGenerations => return None,
            Prompt::TokenIds(ids) => vec![ids.clone()],
            Prompt::TokenIdLists(lists) => lists.clone(),
            Prompt::Text(one) => vec![text(one)],
            Prompt::Texts(texts) => texts.iter().map(|one| text(one)).collect(),
            Prompt::Unclear(value) => vec![PseudoTokens::new(self, hints).with(value)],
            Prompt::Chat(chat) => {
                let mut stream = PseudoTokens::new(self, hints);
                stream.raw(request.field(Field::Tools));
                if request.api == Api::Messages {
                    stream.system(request.field(Field::System));
                }
                stream.messages(chat.messages);
                vec![stream.finish()]
            }
            Prompt::Items(items) => {
                let mut stream = PseudoTokens::new(self, hints);
                for part in [request.field(Field::Instructions), request.field(Field::Tools)] {
                    stream.raw(part);
                }
                match parse_json(items) {
                    Ok(items) => stream.whole(&items),
                    Err(_) => stream.bytes(items),
                }
                vec![stream.finish()]
            }
        })
    }
}

fn count_of(ids: &[u32]) -> u32 {
    u32::try_from(ids.len()).unwrap_or(u32::MAX)
}

/// The stream of bytes, four to a token.
struct PseudoTokens<'e> {
    estimator: &'e Estimator,
    hints: &'e VideoHints,
    bytes: Vec<u8>,
    media_tokens: u32,
}

impl<'e> PseudoTokens<'e> {
    fn new(estimator: &'e Estimator, hints: &'e VideoHints) -> Self {
        Self { estimator, hints, bytes: Vec::new(), media_tokens: 0 }
    }

    fn with(mut self, text: &[u8]) -> Vec<u32> {
        self.bytes(text);
        self.finish()
    }

    fn finish(mut self) -> Vec<u32> {
        self.align();
        let words = self.bytes.as_chunks::<TOKEN_BYTES>().0;
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, value: Option<&JsonValue<'_>>) {
        if let Some(text) = value.and_then(JsonValue::as_str) {
            self.bytes(text.as_bytes());
        }
    }

    /// JSON text as it stands, if it says something.
    fn raw(&mut self, value: Option<&[u8]>) {
        if let Some(value) = value.filter(|value| !matches!(*value, b"null" | b"[]")) {
            self.bytes(value);
        }
    }

    /// Anthropic's `system`: a text or a list of text blocks.
    fn system(&mut self, value: Option<&[u8]>) {
        match value.map(parse_json) {
            Some(Ok(JsonValue::Array(blocks))) => {
                for block in &blocks {
                    self.text(block.get("text").filter(|text| !is_billing_header(text)));
                }
            }
            Some(Ok(text)) => self.text(Some(&text)),
            _ => {}
        }
    }

    /// The messages of a chat; what isn't a list of messages counts as text.
    fn messages(&mut self, messages: &[u8]) {
        let parsed = parse_json(messages);
        let Some(list) = parsed.as_ref().ok().and_then(JsonValue::as_array) else {
            return self.bytes(messages);
        };
        for message in list {
            self.text(message.get("role"));
            self.content(message.get("content"));
        }
    }

    fn content(&mut self, content: Option<&JsonValue<'_>>) {
        match content {
            Some(JsonValue::Array(parts)) => parts.iter().for_each(|part| self.part(part)),
            other => self.text(other),
        }
    }

    fn part(&mut self, part: &JsonValue<'_>) {
        let kind = part.get("type").and_then(JsonValue::as_str).unwrap_or_default();
        match kind {
            "tool_use" => {
                for member in ["id", "name", "input"] {
                    if let Some(value) = part.get(member) {
                        self.whole(value);
                    }
                }
            }
            "tool_result" => self.content(part.get("content")),
            "thinking" => self.text(part.get("thinking")),
            _ => match Media::of_type(kind) {
                Some(media) => self.media(media, part),
                None => self.text(part.get("text").filter(|text| !is_billing_header(text))),
            },
        }
    }

    /// All of a value: keys and texts in their order, and media.
    fn whole(&mut self, value: &JsonValue<'_>) {
        match value {
            JsonValue::Null => self.bytes(b"null"),
            JsonValue::Bool(value) => self.bytes(if *value { b"true" } else { b"false" }),
            JsonValue::Number(JsonNumber::Int(value)) => self.bytes(value.to_string().as_bytes()),
            JsonValue::Number(JsonNumber::BigInt(digits)) => self.bytes(digits.as_bytes()),
            JsonValue::Number(JsonNumber::Float(value)) => self.bytes(value.to_string().as_bytes()),
            JsonValue::String(text) => self.bytes(text.as_bytes()),
            JsonValue::BrokenString => {}
            JsonValue::Array(elements) => elements.iter().for_each(|element| self.whole(element)),
            JsonValue::Object(members) => {
                let kind = value.get("type").and_then(JsonValue::as_str).unwrap_or_default();
                if let Some(media) = Media::of_type(kind) {
                    return self.media(media, value);
                }
                for (key, member) in members.iter() {
                    self.bytes(key.as_bytes());
                    self.whole(member);
                }
            }
        }
    }

    /// A part of media: equal tokens, made from a hash of what it holds, from a new token on.
    fn media(&mut self, media: Media, part: &JsonValue<'_>) {
        let content = content_of(part);
        let tokens = match media {
            Media::Image => self.estimator.image.tokens(content.and_then(resolution_of)),
            Media::Video => self.estimator.video.tokens(self.hints),
            Media::Audio => audio_tokens(),
        };
        let tokens = tokens.min(MAX_MEDIA_TOKENS - self.media_tokens).max(1);
        self.media_tokens = (self.media_tokens + tokens).min(MAX_MEDIA_TOKENS);
        self.align();
        let hash = xxh3_64(content.unwrap_or_default().as_bytes()) as u32;
        let repeated = std::iter::repeat_n(hash.to_le_bytes(), tokens as usize);
        self.bytes.extend(repeated.flatten());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(TOKEN_BYTES), 0);
    }
}

fn is_billing_header(text: &JsonValue<'_>) -> bool {
    text.as_str().is_some_and(|text| text.starts_with(BILLING_HEADER))
}

#[derive(Clone, Copy)]
enum Media {
    Image,
    Audio,
    Video,
}

impl Media {
    /// What a part of this `type` holds.
    fn of_type(kind: &str) -> Option<Self> {
        let kind = kind.strip_prefix("input_").unwrap_or(kind);
        [("image", Self::Image), ("audio", Self::Audio), ("video", Self::Video)]
            .into_iter()
            .find(|(prefix, _)| kind.starts_with(prefix))
            .map(|(_, media)| media)
    }
}

/// The address or the data of a part of media.
fn content_of<'v>(part: &'v JsonValue<'_>) -> Option<&'v str> {
    ["image_url", "video_url", "audio_url", "input_audio", "source", "image", "audio", "video"]
        .iter()
        .find_map(|member| {
            let value = part.get(member)?;
            let inner = ["url", "data"].iter().find_map(|inner| value.get(inner)?.as_str());
            value.as_str().or(inner)
        })
}

/// The size of a picture whose data are at hand in base64, with or without `data:image/…;base64,` before them.
fn resolution_of(content: &str) -> Option<Resolution> {
    let data = match content.strip_prefix("data:") {
        Some(rest) => rest.split_once("base64,")?.1,
        None => content,
    };
    let data = data.as_bytes();
    let head = &data[..data.len().min(HEADER_CHARACTERS)];
    let size = imagesize::blob_size(&STANDARD.decode(head).ok()?).ok()?;
    let side = |pixels: usize| u32::try_from(pixels).ok().filter(|pixels| *pixels > 0);
    Some(Resolution { width: side(size.width)?, height: side(size.height)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmroute_inference_api::parse_request;

    const NO_HINTS: VideoHints = VideoHints { fps: None, duration_s: None, resolution: None };
    /// A picture of one pixel.
    const PIXEL: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

    fn ids(api: Api, body: &str) -> Vec<Vec<u32>> {
        let request = parse_request(api, body.as_bytes()).unwrap();
        let estimator = Estimator::default();
        let ids = estimator.pseudo_tokens(&request, &NO_HINTS).unwrap();
        let counts = estimator.count(&request, &NO_HINTS).unwrap();
        assert_eq!(counts.len(), ids.len());
        ids
    }

    fn text_of(ids: &[u32]) -> String {
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        String::from_utf8(bytes).unwrap().trim_end_matches('\0').to_owned()
    }

    #[test]
    fn texts_are_four_bytes_to_a_token() {
        assert_eq!(ids(Api::Completions, r#"{"prompt":"abcde"}"#), [vec![0x6463_6261, 0x65]]);
        assert_eq!(ids(Api::Completions, r#"{"prompt":["ab","c"]}"#), [vec![0x6261], vec![0x63]]);
        assert_eq!(ids(Api::Completions, r#"{"prompt":[[7],[8,9]]}"#), [vec![7], vec![8, 9]]);
        assert_eq!(ids(Api::SglangGenerate, r#"{"text":"ab"}"#), [vec![0x6261]]);
        let chat = r#"{"messages":[{"role":"system","content":"be"},{"role":"user","content":[{"type":"text","text":"h\u0069"},
            {"type":"input_text","text":"!"}],"name":"x"}],"tools":[{"a": 1}]}"#;
        assert_eq!(text_of(&ids(Api::ChatCompletions, chat)[0]), r#"[{"a": 1}]systembeuserhi!"#);
        let messages = r#"{"system":[{"type":"text","text":"x-anthropic-billing-header: 1"},{"text":"sys"}],"messages":[
            {"role":"user","content":[{"type":"thinking","thinking":"t"},{"type":"tool_use","id":"i","name":"n","input":{"k":[1,true]}},
            {"type":"tool_result","content":[{"type":"text","text":"r"}]}]}]}"#;
        assert_eq!(text_of(&ids(Api::Messages, messages)[0]), "sysusertink1truer");
        let responses = r#"{"instructions":"do","input":[{"role":"user","content":"hi"}]}"#;
        assert_eq!(text_of(&ids(Api::Responses, responses)[0]), "\"do\"roleusercontenthi");
    }

    #[test]
    fn a_longer_conversation_begins_like_the_shorter_one() {
        let body = |more: &str| format!(r#"{{"messages":[{{"role":"user","content":"0123456789"}}{more}]}}"#);
        let (short, long) = (body(""), body(r#",{"role":"assistant","content":"ok"}"#));
        let (short, long) = (ids(Api::ChatCompletions, &short), ids(Api::ChatCompletions, &long));
        assert!(long[0].starts_with(&short[0][..short[0].len() - 1]), "all but the padded token");
    }

    #[test]
    fn media_are_equal_tokens_by_their_content() {
        let body = |url: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":[{{"type":"text","text":"a"}},
                {{"type":"image_url","image_url":{{"url":"{url}"}}}},{{"type":"text","text":"b"}}]}}]}}"#
            )
        };
        let one = ids(Api::ChatCompletions, &body("http://x/1.png"));
        // "usera" is two tokens, the picture 225, "b" one.
        assert_eq!(one[0].len(), 2 + 225 + 1);
        assert!(one[0][2..227].iter().all(|id| *id == one[0][2]));
        let other = ids(Api::ChatCompletions, &body("http://x/2.png"));
        assert_ne!(other[0][2], one[0][2]);
        let pixel = ids(Api::ChatCompletions, &body(&format!("data:image/png;base64,{PIXEL}")));
        assert_eq!(pixel[0].len(), 2 + 1 + 1, "its size is known");
        let anthropic = format!(
            r#"{{"messages":[{{"role":"user","content":[{{"type":"image","source":{{"type":"base64","data":"{PIXEL}"}}}}]}}]}}"#
        );
        assert_eq!(ids(Api::Messages, &anthropic)[0].len(), 2);
        let request = parse_request(Api::ChatCompletions, anthropic.as_bytes()).unwrap();
        assert_eq!(Estimator::default().count(&request, &NO_HINTS), Some(vec![2]));
    }

    #[test]
    fn tokens_of_media_are_bounded() {
        let parts = r#"{"type":"video_url","video_url":{"url":"u"}},"#.repeat(200);
        let body = format!(r#"{{"messages":[{{"content":[{parts}{{"type":"audio"}}]}}]}}"#);
        let request = parse_request(Api::ChatCompletions, body.as_bytes()).unwrap();
        let hints = VideoHints { duration_s: Some(1e12), ..NO_HINTS };
        let ids = Estimator::default().pseudo_tokens(&request, &hints).unwrap();
        assert_eq!(ids[0].len(), MAX_MEDIA_TOKENS as usize + 199);
    }

    #[test]
    fn bodies_without_a_prompt_have_no_estimate() {
        let request = parse_request(Api::ImageGenerations, br#"{"prompt":"a cat"}"#).unwrap();
        assert_eq!(Estimator::default().pseudo_tokens(&request, &NO_HINTS), None);
        let request = parse_request(Api::Other, b"{}").unwrap();
        assert_eq!(Estimator::default().count(&request, &NO_HINTS), None);
    }

    proptest::proptest! {
        #[test]
        fn pictures_of_any_bytes_have_a_size_or_none(
            magic in proptest::prop_oneof![
                proptest::prelude::Just(&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..]),
                proptest::prelude::Just(&b"\xff\xd8\xff\xe0"[..]),
                proptest::prelude::Just(&b"GIF89a"[..]),
                proptest::prelude::Just(&b"RIFF\0\0\0\0WEBPVP8 "[..]),
            ],
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
        ) {
            let data = STANDARD.encode([magic, &bytes].concat());
            let tokens = ImageEstimate::default().tokens(resolution_of(&data));
            proptest::prop_assert!((1..=1_000_000).contains(&tokens));
            let _ = resolution_of(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_messages_have_an_estimate(text in ".{0,40}", kind in "(input_)?(image|video|text|tool_use|tool_result)(_url)?") {
            let part = serde_json::json!({"type": kind, "text": text, "input": [text], "image_url": text, "content": [text]});
            let message = serde_json::json!({"role": text, "content": [part, text]});
            let body = serde_json::json!({"messages": [message, text], "input": [message, {"a": text}], "system": [part]});
            for api in [Api::ChatCompletions, Api::Messages, Api::Responses] {
                let body = body.to_string();
                let request = parse_request(api, body.as_bytes()).unwrap();
                proptest::prop_assert!(Estimator::default().pseudo_tokens(&request, &NO_HINTS).is_some());
            }
        }
    }
}
