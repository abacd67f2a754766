//! The names that other implementations of an architecture give to its tensors, in those of the reference.

/// Whose names they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Dialect {
    /// The reference's.
    Own,
    /// `Generic_UNet` of nnU-Net v1.
    GenericUnet,
    /// `DynUNet` of MONAI.
    DynUnet,
}

/// Names as the networks here know them; `None` for tensors that these do without: those listed twice, and heads of training.
pub(in crate::model) fn translate(names: &[&str]) -> (Dialect, Vec<Option<String>>) {
    let found = generic_unet(names).map(|new| (Dialect::GenericUnet, new)).or_else(|| dyn_unet(names).map(|new| (Dialect::DynUnet, new)));
    match found {
        Some((dialect, new)) => (dialect, names.iter().map(|name| new(name)).collect()),
        None => (Dialect::Own, names.iter().map(|name| Some((*name).to_owned())).collect()),
    }
}

type Renaming = Box<dyn Fn(&str) -> Option<String>>;

/// A number and what follows the point behind it.
fn numbered(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// How many more than the greatest number that follows a begin.
fn count(names: &[impl AsRef<str>], begin: &str) -> usize {
    names.iter().filter_map(|name| numbered(name.as_ref().strip_prefix(begin)?)).map(|(number, _)| number + 1).max().unwrap_or(0)
}

/// `Generic_UNet` of nnU-Net v1: the bottleneck and the stages of the decoder are pairs of sequences.
fn generic_unet(names: &[&str]) -> Option<Renaming> {
    names.iter().find(|name| name.starts_with("conv_blocks_context.0.blocks.0.conv."))?;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Some(Box::new(move |name| {
        let block = |stage: &str, encoder: &str, rest: &str| -> Option<String> {
            let (at, rest) = match rest.strip_prefix("blocks.") {
                Some(rest) => numbered(rest)?,
                None => {
                    let (part, rest) = numbered(rest)?;
                    let (at, rest) = numbered(rest.strip_prefix("blocks.")?)?;
                    let before = if part == 0 { 0 } else { count(&names, &format!("{stage}.0.blocks.")) };
                    (before + at, rest)
                }
            };
            Some(format!("{encoder}.convs.{at}.{}", rest.replacen("instnorm", "norm", 1)))
        };
        if let Some((stage, rest)) = name.strip_prefix("conv_blocks_context.").and_then(numbered) {
            return block(&format!("conv_blocks_context.{stage}"), &format!("encoder.stages.{stage}.0"), rest);
        }
        if let Some((stage, rest)) = name.strip_prefix("conv_blocks_localization.").and_then(numbered) {
            return block(&format!("conv_blocks_localization.{stage}"), &format!("decoder.stages.{stage}"), rest);
        }
        let (stage, part, rest) = [("tu.", "transpconvs"), ("seg_outputs.", "seg_layers")]
            .into_iter()
            .find_map(|(begin, part)| numbered(name.strip_prefix(begin)?).map(|(stage, rest)| (stage, part, rest)))?;
        Some(format!("decoder.{part}.{stage}.{rest}"))
    }))
}

/// `DynUNet` of MONAI: `skip_layers` lists every tensor again.
fn dyn_unet(names: &[&str]) -> Option<Renaming> {
    names.iter().find(|name| name.starts_with("input_block.conv1.conv."))?;
    let (downs, ups) = (count(names, "downsamples."), count(names, "upsamples."));
    Some(Box::new(move |name| {
        let stage = |encoder: &str, rest: &str| -> Option<String> {
            let (part, rest) = rest.split_once('.')?;
            Some(match part {
                "conv1" => format!("{encoder}.convs.0.{rest}"),
                "conv2" => format!("{encoder}.convs.1.{rest}"),
                "conv3" => format!("{encoder}.skip.{rest}"),
                "norm1" => format!("{encoder}.convs.0.norm.{rest}"),
                "norm2" => format!("{encoder}.convs.1.norm.{rest}"),
                "norm3" => format!("{encoder}.skip.norm.{rest}"),
                // the slopes of an activation that has some: the network here does not
                _ => format!("{encoder}.{part}.{rest}"),
            })
        };
        if let Some(rest) = name.strip_prefix("input_block.") {
            return stage("encoder.stages.0.0", rest);
        }
        if let Some((down, rest)) = name.strip_prefix("downsamples.").and_then(numbered) {
            return stage(&format!("encoder.stages.{}.0", down + 1), rest);
        }
        if let Some(rest) = name.strip_prefix("bottleneck.") {
            return stage(&format!("encoder.stages.{}.0", downs + 1), rest);
        }
        if let Some((up, rest)) = name.strip_prefix("upsamples.").and_then(numbered) {
            return match rest.strip_prefix("transp_conv.conv.") {
                Some(rest) => Some(format!("decoder.transpconvs.{up}.{rest}")),
                None => stage(&format!("decoder.stages.{up}"), rest.strip_prefix("conv_block.")?),
            };
        }
        let rest = name.strip_prefix("output_block.conv.conv.")?;
        Some(format!("decoder.seg_layers.{}.{rest}", ups.checked_sub(1)?))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_unet_has_pairs_of_sequences() {
        let names = [
            "conv_blocks_context.0.blocks.0.conv.weight",
            "conv_blocks_context.0.blocks.1.instnorm.bias",
            "conv_blocks_context.1.0.blocks.0.conv.weight",
            "conv_blocks_context.1.0.blocks.1.conv.weight",
            "conv_blocks_context.1.1.blocks.0.instnorm.weight",
            "conv_blocks_localization.0.1.blocks.0.conv.bias",
            "conv_blocks_localization.0.0.blocks.0.conv.bias",
            "tu.0.weight",
            "seg_outputs.0.weight",
            "td.0.weight",
        ];
        let expected = [
            Some("encoder.stages.0.0.convs.0.conv.weight"),
            Some("encoder.stages.0.0.convs.1.norm.bias"),
            Some("encoder.stages.1.0.convs.0.conv.weight"),
            Some("encoder.stages.1.0.convs.1.conv.weight"),
            Some("encoder.stages.1.0.convs.2.norm.weight"),
            Some("decoder.stages.0.convs.1.conv.bias"),
            Some("decoder.stages.0.convs.0.conv.bias"),
            Some("decoder.transpconvs.0.weight"),
            Some("decoder.seg_layers.0.weight"),
            None,
        ];
        assert_eq!(translate(&names).1, expected.map(|name| name.map(str::to_owned)));
    }

    #[test]
    fn dyn_unet_lists_tensors_twice() {
        let names = [
            "input_block.conv1.conv.weight",
            "input_block.conv3.conv.weight",
            "downsamples.0.norm1.weight",
            "bottleneck.norm3.bias",
            "upsamples.0.transp_conv.conv.weight",
            "upsamples.1.conv_block.conv2.conv.weight",
            "output_block.conv.conv.bias",
            "skip_layers.downsample.conv1.conv.weight",
            "deep_supervision_heads.0.conv.conv.weight",
        ];
        let expected = [
            Some("encoder.stages.0.0.convs.0.conv.weight"),
            Some("encoder.stages.0.0.skip.conv.weight"),
            Some("encoder.stages.1.0.convs.0.norm.weight"),
            Some("encoder.stages.2.0.skip.norm.bias"),
            Some("decoder.transpconvs.0.weight"),
            Some("decoder.stages.1.convs.1.conv.weight"),
            Some("decoder.seg_layers.1.bias"),
            None,
            None,
        ];
        assert_eq!(translate(&names).1, expected.map(|name| name.map(str::to_owned)));
    }

    #[test]
    fn other_names_stay() {
        assert_eq!(translate(&["a.weight"]), (Dialect::Own, vec![Some("a.weight".to_owned())]));
    }
}
