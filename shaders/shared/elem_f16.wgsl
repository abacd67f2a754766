// Element prelude: activations and weights stored as f16; arithmetic stays f32.
enable f16;
alias Elem = f16;
alias Elem4 = vec4<f16>;
