"""From raw public data sets, or a simulator, to `<out>/{train,val,test}/<Class>/*.png`."""
