//! What the tests of the convolutional networks share.

use super::Card;
use crate::{DeviceCaps, Elem, Extent, Model, Plan, PlanOptions};

fn card(architecture: &str, config: &str) -> String {
    format!(r#"{{"architecture":"{architecture}","config":{{{config}}}}}"#)
}

/// A published configuration: millions of parameters, GFLOP of a pass over `extent`, both as measured on the reference, and the
/// bytes that plans in f32 and f16 stay below.
pub(super) fn published(architecture: &str, config: &str, extent: Extent, millions: f64, giga: f64, bytes: [u64; 2]) {
    let card = card(architecture, config);
    let (_, graph) = super::architecture(&card).expect("it is one");
    let kept = |name: &str| !name.contains(".running_");
    // with those of heads that lead nowhere
    let whole = Card::parse(&card).and_then(|mut card| card.build()).expect("it is one").graph;
    let elements: usize = whole.parameters().iter().filter(|(n, _)| kept(n)).map(|(_, shape)| shape.iter().product::<usize>()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a count of millions")]
    let counted = elements as f64 / 1e6;
    assert!((counted - millions).abs() <= 0.0051, "{architecture}: {counted} million parameters");
    for (elem, most) in [Elem::F32, Elem::F16].into_iter().zip(bytes) {
        let options = PlanOptions::default().with_precision(elem).with_budget(most);
        let plan = Plan::of_graph(&graph, extent, &DeviceCaps::desktop(), &options).expect("it can be planned");
        let report = plan.report();
        assert!(report.peak_bytes <= most, "{architecture} {}: {} bytes", elem.name(), report.peak_bytes);
        #[expect(clippy::cast_precision_loss, reason = "a count of billions")]
        let counted = report.flops as f64 / 1e9;
        // convolutions alone were counted, without pooling, gates, norms and resampling
        assert!((0.999..1.02).contains(&(counted / giga)), "{architecture} {}: {counted} GFLOP", elem.name());
    }
}

/// A config that is refused by an error with that word in it.
pub(super) fn refused(architecture: &str, config: &str, word: &str) {
    let e = Model::random(&card(architecture, config), 1).expect_err("it is none");
    let text = format!("{e} {:?}", std::error::Error::source(&e).map(ToString::to_string));
    assert!(text.contains(word), "{config}: {text}");
}
