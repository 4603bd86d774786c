//! The members of a request that are kept as JSON text.

/// Members of a request that can change its token ids, or whether the engine accepts it, or how long it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the JSON member of the same name in snake case")]
#[repr(usize)]
pub enum Field {
    AddGenerationPrompt,
    AddSpecialTokens,
    AudioData,
    CacheSalt,
    ChatTemplate,
    ChatTemplateKwargs,
    ContinueFinalMessage,
    Documents,
    ExtraKey,
    Features,
    ImageData,
    Instructions,
    KvTransferParams,
    LoraPath,
    MaxCompletionTokens,
    MaxOutputTokens,
    MaxTokens,
    MmProcessorKwargs,
    PromptEmbeds,
    ReasoningEffort,
    SamplingParams,
    Suffix,
    System,
    ToolChoice,
    Tools,
    TruncatePromptTokens,
    TruncationSide,
    VideoData,
}

impl Field {
    pub(crate) const COUNT: usize = Self::VideoData as usize + 1;

    pub(crate) fn of_key(key: &str) -> Option<Self> {
        Some(match key {
            "add_generation_prompt" => Self::AddGenerationPrompt,
            "add_special_tokens" => Self::AddSpecialTokens,
            "audio_data" => Self::AudioData,
            "cache_salt" => Self::CacheSalt,
            "chat_template" => Self::ChatTemplate,
            "chat_template_kwargs" => Self::ChatTemplateKwargs,
            "continue_final_message" => Self::ContinueFinalMessage,
            "documents" => Self::Documents,
            "extra_key" => Self::ExtraKey,
            "features" => Self::Features,
            "image_data" => Self::ImageData,
            "instructions" => Self::Instructions,
            "kv_transfer_params" => Self::KvTransferParams,
            "lora_path" => Self::LoraPath,
            "max_completion_tokens" => Self::MaxCompletionTokens,
            "max_output_tokens" => Self::MaxOutputTokens,
            "max_tokens" => Self::MaxTokens,
            "mm_processor_kwargs" => Self::MmProcessorKwargs,
            "prompt_embeds" => Self::PromptEmbeds,
            "reasoning_effort" => Self::ReasoningEffort,
            "sampling_params" => Self::SamplingParams,
            "suffix" => Self::Suffix,
            "system" => Self::System,
            "tool_choice" => Self::ToolChoice,
            "tools" => Self::Tools,
            "truncate_prompt_tokens" => Self::TruncatePromptTokens,
            "truncation_side" => Self::TruncationSide,
            "video_data" => Self::VideoData,
            _ => return None,
        })
    }
}
