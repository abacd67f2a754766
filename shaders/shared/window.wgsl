// A window over a map: extents, strides and padding along D, H, W.
override KD: u32 = 3u;
override KH: u32 = 3u;
override KW: u32 = 3u;
override SD: u32 = 1u;
override SH: u32 = 1u;
override SW: u32 = 1u;
override PD: u32 = 1u;
override PH: u32 = 1u;
override PW: u32 = 1u;

