"""All that is known about families of pipelines and classes of components.

`described/` holds the descriptions, one module a family or class. The modules here say what a description is
(`architecture`), find all of them (`registry`), and answer the questions that other rooms ask: `foldable`,
`onnx_parts`, `float16_overflow`.
"""
