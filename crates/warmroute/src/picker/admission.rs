//! Admission: what may be refused is refused while the pool is full.

use warmroute_ext_proc::{HttpRequest, Refusal};
use warmroute_inference_api::Api;
use warmroute_tokenize::VideoHints;

use super::{Draft, Picker, bad_request};
use crate::prompt::KeysWanted;
use crate::receipt::{AdmissionLine, Fallback};

impl Picker {
    /// Refuses a request of negative priority if the pool, or the subset of it that the request may go to, is known to
    /// be full. It is decided before the prompt's tokens are made: what is refused costs little.
    ///
    /// The rule is the llm-d Router EPP's (`pkg/epp/requestcontrol/admission.go` in github.com/llm-d/llm-d-router),
    /// but for an empty pool: it isn't full, it is missing, and the decision says so.
    ///
    /// # Errors
    /// The refusal. A body that can't be read is refused for that, as it would be at any other time.
    pub(super) async fn admit(
        &self,
        request: &HttpRequest,
        api: Api,
        draft: &mut Draft,
    ) -> Result<(), Refusal> {
        if draft.receipt.priority >= 0 {
            return Ok(());
        }
        let Some((detector, saturation)) = self.decider.saturation(self.subset(request)) else {
            return Ok(());
        };
        let admitted = !saturation.is_full();
        if saturation.value.is_none() {
            draft.fallback(Fallback::SaturationUnknown, "no endpoint has recent metrics");
        }
        draft.receipt.admission = Some(AdmissionLine {
            detector: detector.clone(),
            saturation: saturation.value,
            unknown_endpoints: saturation.unknown_endpoints,
            admitted,
        });
        if admitted {
            return Ok(());
        }
        self.read_for_the_receipt(request, api, draft).await?;
        self.metrics.admission.refused.with_label_values(&[&*detector]).inc();
        Err(Refusal::new(429, "ResourceExhausted", "system saturated, sheddable request dropped")
            .with_reason("rejected-saturated"))
    }

    /// Reads of a refused request what receipt and metrics name it by.
    async fn read_for_the_receipt(
        &self,
        request: &HttpRequest,
        api: Api,
        draft: &mut Draft,
    ) -> Result<(), Refusal> {
        if request.body.is_complete() {
            let read = self.reader.read(
                api,
                request.body.contiguous(),
                VideoHints::default(),
                KeysWanted::default(),
            );
            let read = read.await;
            let read = read.map_err(|rejection| bad_request(&rejection))?;
            draft.receipt.model = read.model;
            draft.receipt.stream = read.stream;
        }
        Ok(())
    }
}
